"""The door between YAML and code: frozen, typed config classes, their fingerprint, and errors a user can act on."""

from __future__ import annotations

import dataclasses
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    TypeVar,
    dataclass_transform,
    runtime_checkable,
)

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

T = TypeVar("T")
CONF = Path(__file__).parents[2] / "conf"
REHEARSAL = "rehearsal"
"""Name of the hardware of size=rehearsal: models of some thousand weights, whose numbers mean nothing."""


class UserError(Exception):
    """A mistake the user can mend: shown as one line, exit code 2."""


@contextmanager
def naming(own: str, key: str) -> Iterator[None]:
    """In mistakes that the body tells, the keys `own.…` are called `key.…`, as the user has them in the config."""
    try:
        yield
    except UserError as error:
        if key == own or type(error) not in (UserError, Fault):
            raise
        raise type(error)(re.sub(rf"\b{own}(?=\.\w|:)", key, str(error))) from None


class Fault(UserError):
    """What is wrong with the machine or the store rather than with the user's words: exit code 3."""


class Stopped(BaseException):
    """A stage was asked to stop by signal `number` and has saved its progress; exit code 128 + number.

    Like KeyboardInterrupt not an Exception: it is not for those to catch who guard against whatever goes wrong.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command goes on from here")
        self.exit_code = 128 + number


class _NotInKey:
    """Marks a field that cannot change a result."""


Free = Annotated[T, _NotInKey()]
"""`Free[int]`: a field that cannot change a result (batch sizes, labels, folders), left out of artifact keys."""

YamlPath = Annotated[Path, Field(strict=False)]
"""A path; YAML only has strings."""

Label = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""A name that may become part of a folder's: letters, digits, `_`, `.` and `-`, not beginning with `.` or `-`."""

Device = Literal["cpu", "cuda"]

Share = Annotated[float, Field(ge=0, le=1)]
"""A share or probability in [0, 1]."""


Confidence = Annotated[float, Field(gt=0, lt=1)]
"""Of an interval, such as 0.95."""


@runtime_checkable
class Sourced(Protocol):
    """A config whose result depends on something that lies outside the store and outside the config."""

    def source_version(self) -> str:
        """What lies outside, as text that changes when it does. Raises UserError when it is not there."""
        ...


@runtime_checkable
class Placed(Protocol):
    """A config that names its keys in messages as the user has them, wherever it stands."""

    @property
    def place(self) -> str:
        """Such as `model` or `ranker.checkpoint`; told when the run is built."""
        ...


@runtime_checkable
class Versioned(Protocol):
    """A config whose code may change results that its fields do not show."""

    code_version: ClassVar[int]
    """Raised when it does."""


_MODULES: dict[str, str] = {}
"""Where each config class is defined, by name."""


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
    """JSON-able form of a config with everything that can change a result, and nothing else.

    Raises UserError when a package or folder it names is not there.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named: Any = value
        shape = _shape(value)
        fields = {name: fingerprint(getattr(value, name)) for name in shape.keyed}
        source = {"source_version": named.source_version()} if shape.sourced else {}
        code = {"code_version": named.code_version} if shape.versioned else {}
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


def explain(error: ValidationError, prefix: str) -> str:
    """One line for a refused value: full key, what is wrong, what was given."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in (*filter(None, [prefix]), *first["loc"]) if part != "")
    scalar = isinstance(first["input"], str | int | float | bool | list | None)
    shown = scalar and first["type"] not in ("missing", "unexpected_keyword_argument")
    given = f" (got {first['input']!r})" if shown else ""
    group, value = path.rpartition(".")[2], first["input"]
    if first["type"] == "dataclass_exact_type" and isinstance(value, str) and (CONF / group).is_dir():
        return f"{path}: {value!r} is no value of it; choose a file of conf/{group}: +{group}@{path}={value}"
    if first["type"] == "dataclass_exact_type":
        name = first.get("ctx", {}).get("class_name")
        return f"{path}: wants the keys of a {name}, as the files in conf have them{given}"
    message = {
        "unexpected_keyword_argument": "unknown key; --cfg job shows all keys",
        "missing": "missing; give it a value",
    }.get(first["type"], first["msg"].removeprefix("Value error, "))
    return f"{path}: {message}{given}" if path else f"{message}{given}"


class _Shape(NamedTuple):
    """What a fingerprint asks of a class."""

    keyed: list[str]
    sourced: bool
    versioned: bool


_SHAPES: dict[type, _Shape] = {}


def _shape(value: Any) -> _Shape:
    cls = type(value)
    if cls not in _SHAPES:
        fields = cls.__pydantic_fields__
        keyed = [name for name, field in fields.items() if not any(isinstance(m, _NotInKey) for m in field.metadata)]
        _SHAPES[cls] = _Shape(keyed, isinstance(value, Sourced), isinstance(value, Versioned))
    return _SHAPES[cls]
