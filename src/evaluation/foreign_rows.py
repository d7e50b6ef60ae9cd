"""Rows that somebody else wrote, checked by pydantic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, TypeAdapter, ValidationError

from src.kernel.config import UserError

T = TypeVar("T")
SHORT = 80
"""Characters of a value that messages show."""


def _whole(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half of a character (a lone surrogate)")
    return text


Text = Annotated[str, AfterValidator(_whole)]
"""Text that can be encoded: JSON can spell half of a character."""


def checked(adapter: TypeAdapter[T], value: Any, place: object) -> T:
    """Returns what `adapter` makes of the value. Raises UserError with its place, the key and what is wrong there."""
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    given = "" if first["type"].startswith("missing") else f" (got {shortened(repr(first['input']))})"
    raise UserError(f"{place}: {f'{key}: ' if key else ''}{first['msg'].removeprefix('Value error, ')}{given}")


def read_json(path: Path) -> Any:
    """Reads a JSON file. Raises UserError for any other."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None


def shortened(text: str) -> str:
    """Cuts a text to one short line."""
    line = " ".join(text.encode(errors="backslashreplace").decode().split())
    return line if len(line) <= SHORT else f"{line[:SHORT]}…"
