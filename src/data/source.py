"""Rows that somebody else wrote: files on this machine, and data sets that `datasets` loads.

`for place, row in read_columns(source, ("prompt", "chosen")):` has rows in their order. `place` says where a row
stands, for messages: `file:line` (Parquet has no lines: `file:row`), counted from 1. `row` has those of the columns
that are there.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import PositiveInt

from src.kernel.config import Free, UserError, config
from src.kernel.record import sha256
from src.kernel.rows import Row

Placed = tuple[str, Row]
"""Where a row stands, and those of its columns that were asked for and are there."""
BATCH_ROWS = 1024
"""Rows decoded at a time, so that memory does not grow with the file."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@config
class Source:
    """A file, a folder of files, or a data set: a hub id, or a folder that `datasets` loads, with a split."""

    path: Free[str]
    """Outside the key: `content` follows what a file says, and names a hub id."""
    split: str | None = None
    """Null: the files themselves are read. A data set needs one; `a+b` is one after the other."""
    subset: str | None = None
    """Of a data set that has several (the hub calls it config)."""
    revision: Free[str | None] = None
    """Of a hub id: commit, tag or branch, null for `main`. Only a commit makes the result reproducible."""
    rows: Free[PositiveInt | None] = None
    """As published: what a plan says before a data set is fetched."""

    def __post_init__(self) -> None:
        if self.subset is not None and self.split is None:
            raise ValueError("subset: only a data set has one; name its split too")

    @property
    def name(self) -> str:
        """For messages."""
        return self.path if self.split is None else f"{self.path}[{self.split}]"

    @property
    def label(self) -> str:
        """A name for its rows: `part1` of `data/part1.jsonl`, `set/train` of the split `train` of `owner/set`."""
        path = Path(self.path)
        name = path.stem if path.suffix in READERS else path.absolute().name
        return "/".join(filter(None, (name, self.subset, self.split)))

    def check(self) -> None:
        """Raises UserError when there is no such file or folder, or it cannot be read as what it is."""
        path = Path(self.path)
        if path.exists() and not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            raise UserError(f"{path}: cannot be read; is it yours?")
        if self.split is None:
            _files(path)
        elif path.is_file():
            raise UserError(f"{path} is one file and has no split {self.split!r}; leave the split null")
        elif not path.is_dir() and not _is_hub_id(self.path):
            hint = "; `make rehearsal` makes it" if path.parts[0] == "rehearsal" else ""
            raise UserError(f"no file or folder {path}, and it is no hub id{hint}")

    def content(self) -> str:
        """Returns text that changes when the rows may: a hash of local files, else id and revision."""
        self.check()
        path = Path(self.path)
        if not path.exists():
            return f"{self.path}@{self.revision or 'main'}"
        files = _files(path) if self.split is None else sorted(p for p in path.rglob("*") if p.is_file())
        parts = [(str(file.relative_to(path)), _hash(file, *_version(file))) for file in files]
        return f"{self.label} {hashlib.sha256(repr(parts).encode()).hexdigest()}"

    def count(self) -> int | None:
        """Counts the rows; of a data set that is the published number, None where none is given."""
        if self.split is not None:
            return self.rows
        return sum(_count(file, *_version(file)) for file in _files(Path(self.path)))


def read_columns(source: Source, columns: Collection[str]) -> Iterator[Placed]:
    """Reads rows in their order as (place, {column: value}); a column that is not there is not in the row.

    Only `columns` are read where the format allows it. Raises UserError with the place of what cannot be read.
    """
    source.check()
    if source.split is None:
        parts = [(str(file), READERS[file.suffix](file, columns)) for file in _files(Path(source.path))]
    else:
        parts = [(source.name, _read_data_set(source, columns))]
    for name, rows in parts:
        empty = True
        for placed in rows:
            empty = False
            yield placed
        if empty:
            raise UserError(f"{name}: no rows in it")


def _read_jsonl(file: Path, columns: Collection[str]) -> Iterator[Placed]:
    """Lines end at a line feed only: a prompt may hold any other character that Unicode calls a line break."""
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip("\r\n"))
            reason = "" if isinstance(row, dict) else f"a {type(row).__name__}, not an object"
        except json.JSONDecodeError as error:
            row, reason = {}, f"{error.msg} at column {error.colno}"
        except (ValueError, RecursionError) as error:  # brackets thousands deep, a number of thousands of digits
            row, reason = {}, str(error).partition(";")[0]
        if reason:
            remedy = "a line is one object {column: value}: mend it or delete it"
            raise UserError(f"{file}:{number}: not JSON ({reason}); {remedy}")
        yield f"{file}:{number}", {name: row[name] for name in columns if name in row}


def _read_csv(file: Path, columns: Collection[str]) -> Iterator[Placed]:
    """The first row names the columns. A row is placed at the line of the file on which it ends."""
    csv.field_size_limit(2**31 - 1)  # the csv module would refuse a cell of 131,073 characters
    reader = csv.DictReader(_lines(file), strict=True)
    try:
        header = reader.fieldnames or []
        if len(set(header)) < len(header):
            raise UserError(f"{file}:1: two columns have the same name; rename one")
        for row in reader:
            place = f"{file}:{reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{place}: not {len(header)} cells, one a column; quote cells that hold a comma")
            yield place, {name: cell for name, cell in row.items() if name in columns}
    except csv.Error as error:
        where = f"{file}:{reader.reader.line_num}"
        raise UserError(f"{where}: not CSV ({error}); is a quote open, or not doubled inside a cell?") from None


def _read_parquet(file: Path, columns: Collection[str]) -> Iterator[Placed]:
    """Columns that are not asked for are not read from the disk."""
    number = 0
    try:
        with pq.ParquetFile(file) as table:
            present = [name for name in table.schema_arrow.names if name in columns]
            for batch in table.iter_batches(BATCH_ROWS, columns=present):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}:{number}", row
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(f"{file}: not readable as Parquet after row {number} ({reason}); write it again") from None


READERS: dict[str, Callable[[Path, Collection[str]], Iterator[Placed]]] = {
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}


def _lines(file: Path) -> Iterator[str]:
    """Decodes the lines, without the mark that some editors put before the first."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{file}:{number}: not UTF-8 ({error.reason}); save the file as UTF-8") from None


def _read_data_set(source: Source, columns: Collection[str]) -> Iterator[Placed]:
    """Reads the split through `datasets`, from its cache where it was fetched before."""
    from datasets import load_dataset

    local = Path(source.path).exists()
    path = str(Path(source.path).absolute()) if local else source.path
    try:
        revision = None if local else source.revision
        data: Any = load_dataset(path, source.subset, split=source.split, revision=revision)
    except Exception as error:  # its own, the hub's, pyarrow's: whatever it is, the set cannot be read
        reason = " ".join((str(error).strip() or repr(error)).split())
        if local:
            raise UserError(f"{source.path}: `datasets` cannot load the split {source.split!r}: {reason}") from None
        raise UserError(
            f"{source.path}: no folder here, and its split {source.split!r} cannot be fetched from the hub: {reason}"
        ) from None
    present = [name for name in data.column_names if name in columns]
    number = 0
    for table in data.select_columns(present).with_format("arrow").iter(BATCH_ROWS):
        for row in table.to_pylist() if present else [{}] * table.num_rows:
            number += 1
            yield f"{source.name}:{number}", row


def _files(path: Path) -> list[Path]:
    """Lists the file, or those of the folder by name. Raises UserError when there is none that can be read."""
    known = ", ".join(READERS)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in READERS)
        if not files:
            raise UserError(f"no file in {path} ends in {known}; a folder laid out as a data set needs a split")
        for file in files:
            if not os.access(file, os.R_OK):
                raise UserError(f"{file}: cannot be read; is it yours?")
        return files
    if path.is_file():
        if path.suffix not in READERS:
            raise UserError(f"{path}: the name of a file ends in {known}; unpack it or convert it")
        return [path]
    hint = (
        f"no file or folder {path}; if it is a hub id, name its split" if _is_hub_id(str(path)) else f"no file {path}"
    )
    raise UserError(hint)


def _is_hub_id(path: str) -> bool:
    return bool(_HUB_ID.fullmatch(path)) and Path(path).suffix not in READERS


def _version(file: Path) -> tuple[int, int]:
    """Returns what changes when a file is written: a plan asks for hashes and counts several times."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=256)
def _hash(file: Path, size: int, time_ns: int) -> str:
    return sha256(file)


@lru_cache(maxsize=256)
def _count(file: Path, size: int, time_ns: int) -> int:
    return sum(1 for _ in READERS[file.suffix](file, ()))
