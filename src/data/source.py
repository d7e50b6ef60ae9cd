"""Rows that somebody else wrote: files on this machine, and data sets that `datasets` loads.

`for place, row in read_columns(source, ("prompt", "chosen")):` yields the rows in their order. `place` is for
messages: `file:line`, or `file:row` of Parquet, counted from 1. `row` has only those of the columns that exist.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, PositiveInt
from pydantic_core import from_json

from src.kernel.config import Free, UserError, config
from src.kernel.record import identity_of, sha256
from src.kernel.rows import Row

Placed = tuple[str, Row]
"""The place of a row (for messages) and the requested columns that it has."""


@config
class Source:
    """A file, a folder of files, or a data set: a hub id, or a folder that `datasets` loads, with a split."""

    path: Free[Annotated[str, AfterValidator(os.path.expanduser)]]
    """Not part of the key: `content` is a hash of the files, or the hub id."""
    split: str | None = None
    """Null: the files themselves are read. A data set needs one; `a+b` is one after the other."""
    subset: str | None = None
    """The subset of a data set that has several (the hub calls it config)."""
    revision: Free[str | None] = None
    """Commit, tag or branch of a hub id, null for `main`. Only a commit makes the result reproducible."""
    rows: Free[PositiveInt | None] = None
    """The number of rows as published, for plans before a data set is fetched."""

    def __post_init__(self) -> None:
        if self.subset is not None and self.split is None:
            raise ValueError("subset: only a data set has one; name its split too")

    @property
    def name(self) -> str:
        """The name in messages."""
        return self.path if self.split is None else f"{self.path}[{self.split}]"

    @property
    def label(self) -> str:
        """The name that rows carry: `part1` of `data/part1.jsonl`, `set/train` of the split `train` of `owner/set`."""
        path = Path(self.path)
        name = path.stem if path.suffix in READERS else path.absolute().name
        return "/".join(filter(None, (name, self.subset, self.split)))

    def content(self, key: str = "") -> str:
        """Return text that changes when the rows may: a hash of local files, else id and revision.

        Raises UserError when there is no such file, folder or hub id; `key` is the source's own in the config.
        """
        path, place = Path(self.path), f"{key}: " if key else ""
        if self.split is not None and not path.is_dir():
            if not _is_hub_id(self.path):
                hint = "`make rehearsal` makes it" if path.parts[0] == "rehearsal" else "a file has no split"
                raise UserError(f"{place}{path} is no folder and no hub id; {hint}")
            return f"{self.path}@{self.revision or 'main'}"
        files = _files(path, place) if self.split is None else sorted(p for p in path.rglob("*") if p.is_file())
        parts = [(str(file.relative_to(path)), _hash(*identity_of(file))) for file in files]
        return f"{self.label} {hashlib.sha256(repr(parts).encode()).hexdigest()}"

    def count(self) -> int | None:
        """Count the rows of files; of a data set, return the published number, or None where none is given."""
        if self.split is not None:
            return self.rows
        return sum(_count(*identity_of(file)) for file in _files(Path(self.path)))


def read_columns(source: Source, columns: Collection[str]) -> Iterator[Placed]:
    """Read rows in their order as (place, {column: value}); a column that is not there is not in the row.

    Only `columns` are read where the format allows it. Raises UserError with the place of what cannot be read.
    """
    if source.split is not None:
        yield from _read_data_set(source, columns)
        return
    for file in _files(Path(source.path)):
        yield from READERS[file.suffix](file, columns)


def _read_jsonl(file: Path, columns: Collection[str]) -> Iterator[Placed]:
    """Read one row per line. Lines end at a line feed only; the mark that some editors put first is passed over."""
    for number, line in enumerate(file.open("rb"), 1):
        if not (text := line.removeprefix(b"\xef\xbb\xbf").strip()):
            continue
        try:
            row = from_json(text)
            if not isinstance(row, dict):
                raise ValueError(f"a {type(row).__name__}, not an object")
        except ValueError as error:
            reason = str(error).replace("at line 1 ", "at ")
            remedy = "a line is one object {column: value} in UTF-8: mend it or delete it"
            raise UserError(f"{file}:{number}: not JSON ({reason}); {remedy}") from None
        yield f"{file}:{number}", {name: row[name] for name in columns if name in row}


def _read_parquet(file: Path, columns: Collection[str]) -> Iterator[Placed]:
    try:
        with pq.ParquetFile(file) as table:
            present = [name for name in table.schema_arrow.names if name in columns]
            batches = table.iter_batches(columns=present)
            for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                yield f"{file}:{number}", row
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(f"{file}: not readable as Parquet ({reason}); write it again") from None


Reader = Callable[[Path, Collection[str]], Iterator[Placed]]
READERS: dict[str, Reader] = {".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _read_data_set(source: Source, columns: Collection[str]) -> Iterator[Placed]:
    """Read the split through `datasets`, from its cache where it was fetched before."""
    from datasets import load_dataset

    local = Path(source.path).exists()
    path = str(Path(source.path).absolute()) if local else source.path
    revision = None if local else source.revision
    try:
        data: Any = load_dataset(path, source.subset, split=source.split, revision=revision)
    except Exception as error:  # its own, the hub's, pyarrow's: whatever it is, the set cannot be read
        reason = " ".join(str(error).split()) or repr(error)
        how = "`datasets` cannot load" if local else "no folder here, and from the hub cannot be fetched"
        raise UserError(f"{source.path}: {how} the split {source.split!r}: {reason}") from None
    present = [name for name in data.column_names if name in columns]
    for number, row in enumerate(data.select_columns(present), 1):
        yield f"{source.name}:{number}", row


def _files(path: Path, place: str = "") -> list[Path]:
    """List the file, or those of the folder by name. Raises UserError when there is none that can be read."""
    if not os.path.exists(path):
        hint = "" if path.is_absolute() else f"; paths start in {Path.cwd()}, where the command is given"
        hint += "; if it is a hub id, name its split" if _is_hub_id(str(path)) else ""
        raise UserError(f"{place}no file {path}{hint}")
    files = sorted(file for file in (path.iterdir() if path.is_dir() else [path]) if file.suffix in READERS)
    if not files:
        remedy = "convert it, or give a split to a folder laid out as a set"
        raise UserError(f"{place}{path}: no name ends in {' or '.join(READERS)}; {remedy}")
    if refused := next((file for file in files if not (file.is_file() and os.access(file, os.R_OK))), None):
        raise UserError(f"{place}{refused} is no file that can be read; name another")
    return files


def _is_hub_id(path: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path)) and Path(path).suffix not in READERS


@lru_cache(maxsize=256)
def _hash(file: Path, *version: object) -> str:
    """Hash a file as long as `version` says that it is the same: a plan asks several times."""
    return sha256(file)


@lru_cache(maxsize=256)
def _count(file: Path, *version: object) -> int:
    return sum(1 for _ in READERS[file.suffix](file, ()))
