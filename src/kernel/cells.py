"""Cells: what was worked out once and need not be again, by another artifact or by the next attempt.

A folder of files, each written by one process: a line is the crc32 of the rest in hex, and `[key, value]` in JSON. A
line that a crash has torn or that is damaged is not read.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.kernel.disk import make_folder, sync

CELLS = "cells"
"""The name, in a stage's folder WORK, of the link to the cells that it shares with artifacts of the same identity."""


def cell_key(*parts: str) -> str:
    """Return 32 hex digits that depend on the texts and their order."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


class Cells:
    """JSON values by a text or a number; any number of processes may read and add at the same time.

    `compact` returns what is kept of a value in memory. Without `read` they are only added to.
    """

    def __init__(self, folder: Path, compact: Callable[[Any], Any] = lambda value: value, read: bool = True) -> None:
        make_folder(folder)
        self.folder = folder
        self.values: dict[Any, Any] = {}
        self._compact = compact
        self._file = folder / f"{uuid.uuid4().hex}.jsonl"
        """The file that this process writes to."""
        self._read: dict[Path, int] = {}
        """Bytes of each file that were read."""
        if read:
            self.refresh()

    def refresh(self) -> list[Any]:
        """Read what other processes have added since the last time; return the keys that are new."""
        fresh: list[Any] = []
        for path in sorted(self.folder.glob("*.jsonl")):
            if path == self._file:
                continue
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                *lines, torn = file.read().split(b"\n")
                self._read[path] = file.tell() - len(torn)
            for line in lines:
                try:
                    key, value = value_of(line)
                    hash(key)
                except (RecursionError, TypeError, ValueError):
                    print(f"{path}: a damaged line; what it held is computed again", file=sys.stderr, flush=True)
                    continue
                if key not in self.values:
                    self.values[key] = self._compact(value)
                    fresh.append(key)
        return fresh

    def add(self, values: Mapping[Any, Any]) -> None:
        """Add values; they are on disk when it returns."""
        try:
            with self._file.open("a") as file:
                file.write("".join(map(line_of, values.items())))
                file.flush()
                os.fsync(file.fileno())
            sync(self.folder)
        except OSError:
            self._file = self._file.with_name(f"{uuid.uuid4().hex}.jsonl")  # the old one may end in a torn line
            raise
        self.values |= {key: self._compact(value) for key, value in values.items()}

    @contextmanager
    def saving(self, seconds: float) -> Iterator[Callable[[str, Any], None]]:
        """Yield a function that adds a value; they are on disk every so many `seconds`, and whatever ends the body."""
        unsaved: dict[str, Any] = {}
        saved = time.monotonic()

        def add(key: str, value: Any) -> None:
            nonlocal saved
            unsaved[key] = value
            if time.monotonic() - saved > seconds:
                self.add(unsaved)
                unsaved.clear()
                saved = time.monotonic()

        try:
            yield add
        finally:
            if unsaved:
                self.add(unsaved)


def line_of(value: Any) -> str:
    """Return a JSON-able value as the line that `value_of` reads."""
    text = json.dumps(value)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def value_of(line: bytes) -> Any:
    """Return the value of a line. Raises ValueError for a line that is not as it was written."""
    crc, _, text = line.partition(b" ")
    if int(crc, 16) != zlib.crc32(text):
        raise ValueError("its crc32 differs")
    return json.loads(text)
