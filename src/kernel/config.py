"""The door between YAML and code: frozen, typed config classes, their fingerprint, and errors a user can act on."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

T = TypeVar("T")
CONF = Path(__file__).parents[2] / "conf"
REHEARSAL = "rehearsal"
"""Name of the hardware of size=rehearsal: models of some thousand weights, whose numbers mean nothing."""


class UserError(Exception):
    """A mistake the user can mend: shown as one line, exit code 2."""


class Fault(UserError):
    """A failure of the machine or the store rather than of the user's words: exit code 3."""


@contextmanager
def naming(name: str, key: str) -> Iterator[None]:
    """Rename config keys in a UserError of the body: `name.x` becomes `key.x`, the key that the user set."""
    try:
        yield
    except UserError as error:
        error.args = (re.sub(rf"\b{name}(?=\.\w|:)", key, str(error)),)
        raise


def meant(word: str, names: Iterable[str]) -> str:
    """Return a question that names the one of `names` that is most like a misspelt word; empty where none is."""
    return "".join(f"did you mean {name}? " for name in get_close_matches(word, list(names), n=1))


class Stopped(BaseException):
    """A stage was asked to stop by signal `number` and has saved its progress; exit code 128 + number.

    Like KeyboardInterrupt no Exception, so that handlers for whatever goes wrong let it pass.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command resumes from here")
        self.exit_code = 128 + number


class _NotInKey:
    """Marks a field that cannot change a result."""


Free = Annotated[T, _NotInKey()]
"""`Free[int]`: a field that cannot change a result (batch sizes, labels, folders), left out of artifact keys."""


def _named(value: Any) -> Any:
    if not value:
        raise ValueError("name a file or a folder")
    return os.path.expanduser(value) if isinstance(value, str) else value


YamlPath = Annotated[Path, BeforeValidator(_named), Field(strict=False)]
"""A path; YAML only has strings."""


def matching(pattern: str, otherwise: str) -> AfterValidator:
    """Return a mark for a text that must match `pattern` as a whole; `otherwise` says what else it should be."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(otherwise)
        return text

    return AfterValidator(check)


Label = Annotated[str, matching(r"\w[\w.-]{0,99}", "not a valid folder name: use letters, digits, _ . - (at most 100)")]
"""A name that may become part of a folder's: letters, digits, `_`, `.` and `-`, not beginning with `.` or `-`."""

Device = Literal["cpu", "cuda"]

Share = Annotated[float, Field(ge=0, le=1)]
"""A share or probability in [0, 1]."""

Confidence = Annotated[float, Field(gt=0, lt=1)]
"""The confidence of an interval, such as 0.95."""


def _in_order(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] >= ends[1]:
        raise ValueError("no range; the lower bound comes first")
    return ends


Range = Annotated[tuple[float, float], Field(strict=False), AfterValidator(_in_order)]
"""A range of numbers, the lower end first; YAML only has lists."""


_MODULES: dict[str, str] = {}
"""The module of each config class, by name."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass that refuses unknown keys, wrong types, NaN and infinity.

    Its name stands in artifact keys in place of its module, so that files may move. Raises TypeError when a class of
    another module has the name already.
    """
    name, module = cls.__qualname__, cls.__module__
    if _MODULES.setdefault(name, module) != module and "<locals>" not in name:
        raise TypeError(f"two configs are called {name}, in {_MODULES[name]} and {module}; artifact keys need one name")
    rules = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    return pydantic_dataclass(config=rules, frozen=True, kw_only=True)(cls)  # pyright: ignore


def fingerprint(value: Any) -> Any:
    """Return the JSON-able form of a config with everything that can change a result, and nothing else.

    Two members of a class say what its fields do not show. `source_version()` returns text that changes when something
    outside the store and the config does; it raises UserError when that is not there. Fields named in `located_by` say
    only where that lies, and are left out where there is such text. `code_version` is raised by hand when the code
    changes results.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        stage: Any = value
        keyed, sourced, versioned = _shape(type(value))
        fields = {name: fingerprint(getattr(value, name)) for name in keyed}
        source = {"source_version": stage.source_version()} if sourced else {}
        if source.get("source_version"):
            fields = {name: field for name, field in fields.items() if name not in getattr(stage, "located_by", ())}
        code = {"code_version": stage.code_version} if versioned else {}
        return {"_target_": type(value).__qualname__} | fields | source | code
    if isinstance(value, list | tuple):
        return [fingerprint(item) for item in value]
    if isinstance(value, dict):
        return {key: fingerprint(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{value!r} cannot be part of an artifact key")


def leaves(value: Any, key: str = "", whole: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield every value below dicts and lists, with the dotted key that leads to it.

    `whole`: lists without a dict are values, and so are empty dicts.
    """
    if isinstance(value, list) and not (whole and not any(isinstance(item, dict) for item in value)):
        value = dict(enumerate(value))
    if isinstance(value, dict) and not (whole and not value):
        for name, part in value.items():
            yield from leaves(part, f"{key}.{name}".lstrip("."), whole)
    else:
        yield key, value


def explain(error: ValidationError, prefix: str) -> str:
    """Return one line for a refused value: full key, what is wrong, the value."""
    first, *others = error.errors()
    kind, value = first["type"], first["input"]
    path = ".".join(str(part) for part in (prefix, *first["loc"]) if part != "" and not _OF_UNION.match(str(part)))
    group = path.rpartition(".")[2]
    if kind == "unexpected_keyword_argument":
        refusing = getattr(sys.modules.get(_MODULES.get(error.title, "")), error.title, None)
        hint = meant(group, getattr(refusing, "__pydantic_fields__", ()))
        message = f"unknown key; {hint.replace(' mean ', f' mean {path[: -len(group)]}')}--cfg job shows all keys"
    elif kind == "missing":
        message = "missing; give it a value"
    elif kind in _WANTS_KEYS and isinstance(value, str) and (CONF / group).is_dir():
        message = f"no file is chosen so; say {group}@{path}={value}, with + in front where none is chosen yet"
    else:
        message = first["msg"].removeprefix("Value error, ").removesuffix(" for <class 'pathlib.Path'>")
        if message.partition(": ")[0] in (getattr(value, "kwargs", None) or ()):
            return f"{path}.{message}".lstrip(".")  # a class says which of its keys is wrong
        if kind in _WANTS_KEYS:
            wanted = first.get("ctx", {})
            message = f"wants the keys of {wanted.get('class_name') or wanted.get('class')}, as files in conf have them"
        else:  # each kind that a union takes is an error of its own
            also = [other["msg"].removeprefix("Input should be ") for other in others if other["input"] is value]
            message = " or ".join([message, *also])
        if isinstance(value, str | int | float | bool | list | None):
            message += f" (got {value!r})"
    return f"{path}: {message}" if path else message


_WANTS_KEYS = ("dataclass_exact_type", "is_instance_of")
"""Pydantic's names for a value that is no object of a config class."""
_OF_UNION = re.compile(r"(str|int|float|bool|none|literal|list|tuple|dict|constrained-\w+|function-\w+)\b(?!\.)")
"""What pydantic puts into the path of a value for each kind that it may have."""


@cache
def _shape(cls: Any) -> tuple[list[str], bool, bool]:
    """Return the names of the fields in the key, and whether the class has a source_version and a code_version."""
    fields = cls.__pydantic_fields__.items()
    keyed = [name for name, field in fields if not any(isinstance(mark, _NotInKey) for mark in field.metadata)]
    return keyed, hasattr(cls, "source_version"), hasattr(cls, "code_version")
