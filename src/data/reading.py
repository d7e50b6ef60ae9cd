"""Rows that somebody else wrote: files on this machine, and data sets that `datasets` loads.

`for place, row in read_columns(source, ("prompt", "chosen")):` has rows in their order, `place` for messages, and in
`row` those of the columns that are there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from src.data.formats import BATCH_ROWS, COUNTERS, READERS, Placed
from src.kernel.config import Free, UserError, config
from src.kernel.record import sha256

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
    def local(self) -> bool:
        return Path(self.path).exists()

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
        """Text that changes when the rows may: a hash of local files, else id and revision. Raises like `check`."""
        self.check()
        if not self.local:
            return f"{self.path}@{self.revision or 'main'}"
        path = Path(self.path)
        files = _files(path) if self.split is None else sorted(p for p in path.rglob("*") if p.is_file())
        parts = [(str(file.relative_to(path)), _hash(file, *_seen(file))) for file in files]
        return f"{self.label} {hashlib.sha256(repr(parts).encode()).hexdigest()}"

    def count(self) -> int | None:
        """Rows, without what they say; of a data set the published number, None where none is given."""
        if self.split is not None:
            return self.rows
        return sum(_count(file, *_seen(file)) for file in _files(Path(self.path)))


def read_columns(source: Source, columns: Collection[str]) -> Iterator[Placed]:
    """Rows in their order as (place, {column: value}); a column that is not there is not in the row.

    Only `columns` are read where the format allows it. Raises UserError with the place of what cannot be read.
    """
    source.check()
    if source.split is not None:
        yield from _some(source.name, _read_data_set(source, columns))
        return
    for file in _files(Path(source.path)):
        yield from _some(str(file), READERS[file.suffix](file, columns))


def _some(name: str, rows: Iterator[Placed]) -> Iterator[Placed]:
    first = next(rows, None)
    if first is None:
        raise UserError(f"{name}: no rows in it")
    yield first
    yield from rows


def _read_data_set(source: Source, columns: Collection[str]) -> Iterator[Placed]:
    data = _load(source)
    present = [name for name in data.column_names if name in columns]
    number = 0
    for table in data.select_columns(present).with_format("arrow").iter(BATCH_ROWS):
        for row in table.to_pylist() if present else [{}] * table.num_rows:
            number += 1
            yield f"{source.name}:{number}", row


def _load(source: Source) -> Any:
    """The split as a `datasets.Dataset`, from its cache where it was fetched before."""
    from datasets import load_dataset

    path = str(Path(source.path).absolute()) if source.local else source.path
    revision = None if source.local else source.revision
    try:
        return load_dataset(path, source.subset, split=source.split, revision=revision)
    except Exception as error:  # its own, the hub's, pyarrow's: whatever it is, the set cannot be read
        reason = " ".join((str(error).strip() or repr(error)).split())
        if source.local:
            raise UserError(f"{source.path}: `datasets` cannot load the split {source.split!r}: {reason}") from None
        raise UserError(
            f"{source.path}: no folder here, and its split {source.split!r} cannot be fetched from the hub: {reason}"
        ) from None


def _files(path: Path) -> list[Path]:
    """The file, or those of the folder by name. Raises UserError when there is none that can be read."""
    known = ", ".join(READERS)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in READERS)
        closed = next((file for file in files if not os.access(file, os.R_OK)), None)
        if closed:
            raise UserError(f"{closed}: cannot be read; is it yours?")
        if not files:
            raise UserError(f"no file in {path} ends in {known}; a folder laid out as a data set needs a split")
        return files
    if path.is_file():
        if path.suffix not in READERS:
            raise UserError(f"{path}: the name of a file ends in {known}; unpack it or convert it")
        return [path]
    if path.suffix in READERS or not _is_hub_id(str(path)):
        raise UserError(f"no file {path}")
    raise UserError(f"no file or folder {path}; if it is a hub id, name its split")


def _is_hub_id(path: str) -> bool:
    return bool(_HUB_ID.fullmatch(path)) and Path(path).suffix not in READERS


def _seen(file: Path) -> tuple[int, int]:
    """What changes when a file is written: a plan asks for hashes and counts several times."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=256)
def _hash(file: Path, size: int, time_ns: int) -> str:
    return sha256(file)


@lru_cache(maxsize=256)
def _count(file: Path, size: int, time_ns: int) -> int:
    return COUNTERS[file.suffix](file)
