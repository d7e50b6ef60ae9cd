"""Rows and files that somebody else wrote, checked by pydantic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from src.data.source import Source, read_columns
from src.kernel.config import UserError

T = TypeVar("T")


def read_table(form: type[T], source: Source) -> Iterator[tuple[str, T]]:
    """Yield the place of each row, and the row as a TypedDict `form`. Raises UserError for a wrong one."""
    adapter = TypeAdapter(form)
    for place, row in read_columns(source, tuple(form.__annotations__)):
        try:
            yield place, adapter.validate_python(row, strict=True)
        except ValidationError as error:
            raise _complaint(error, place) from None


def read_json(form: Any, path: Path) -> Any:
    """Return the value of type `form` in a JSON file. Raises UserError like `read_table`; rows are counted from 0."""
    try:
        return TypeAdapter(form).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        raise _complaint(error, path) from None


def _complaint(error: ValidationError, place: object) -> UserError:
    first = error.errors()[0]
    key = "".join(f"{part}." for part in first["loc"])[:-1]
    value = "" if first["type"] in ("missing", "json_invalid") else f" (got {first['input']!r:.80})"
    return UserError(f"{place}: {f'{key}: ' if key else ''}{first['msg']}{value}")
