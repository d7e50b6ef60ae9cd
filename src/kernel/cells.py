"""Cells: what was worked out once for a piece of text and need not be again, whichever artifact asks.

A folder of files, each written by one process: a line is the crc32 of the rest in hex, and `[key, value]` in JSON. A
line that a crash has torn or that is damaged is not read; one without a crc32 is.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.kernel.disk import make_folder, sync

CELLS = "cells"
"""In a stage's folder WORK: the link to the cells that it shares with artifacts of the same identity."""


def cell_key(*parts: str) -> str:
    """Return 32 hex digits that depend on the texts and their order."""
    return hashlib.sha256(json.dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Cells:
    """key -> JSON value; any number of processes may read and add at the same time.

    `compact` makes of a value what is kept of it in memory. Without `read` they are only added to.
    """

    def __init__(self, folder: Path, compact: Callable[[Any], Any] = lambda value: value, read: bool = True) -> None:
        make_folder(folder)
        self.folder = folder
        self._compact = compact
        self._own = self._new_file()
        self._read: dict[Path, int] = {}
        self.values: dict[str, Any] = {}
        self.again: list[tuple[str, Any, Path]] = []
        """Cells that were there already when they were read, and where they stood."""
        if read:
            self.refresh()

    def refresh(self) -> list[str]:
        """Read what other processes have added since the last look; return the keys that are new."""
        fresh: list[str] = []
        for path in sorted(self.folder.glob("*.jsonl")):
            start = self._read.get(path, 0)
            if path == self._own or path.stat().st_size <= start:
                continue
            with path.open("rb") as file:
                file.seek(start)
                new = file.read()
            *lines, torn = new.split(b"\n")
            self._read[path] = start + len(new) - len(torn)
            damaged = 0
            for line in lines:
                try:
                    key, value = cell_of(line)
                    value = self._compact(value)
                    known = key in self.values
                except (ValueError, TypeError, KeyError):
                    damaged += 1
                    continue
                if known:
                    self.again.append((key, value, path))
                else:
                    self.values[key] = value
                    fresh.append(key)
            if damaged:
                print(f"{path}: {damaged} damaged lines; what they held is computed again", file=sys.stderr, flush=True)
        return fresh

    def add(self, values: dict[str, Any]) -> None:
        """Add values; they are on disk when it returns."""
        try:
            new = not self._own.exists()
            with self._own.open("a") as file:
                file.write("".join(line_of(*item) for item in values.items()))
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync(self.folder)
        except OSError:
            self._own = self._new_file()  # the old one may end in a torn line
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

    def _new_file(self) -> Path:
        return self.folder / f"{uuid.uuid4().hex}.jsonl"


def line_of(key: str, value: Any) -> str:
    """Return the line that `cell_of` reads."""
    return with_crc(json.dumps((key, value)))


def cell_of(line: bytes) -> tuple[str, Any]:
    """Return the key and value of a line. Raises ValueError or TypeError for one that is not as it was written."""
    key, value = json_of(line, old=b"[")
    return key, value


def with_crc(text: str) -> str:
    """Return the line of JSON that `json_of` reads."""
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def json_of(line: bytes, old: bytes) -> Any:
    """Read a line of JSON; one that begins with `old` has no crc32. Raises ValueError for a damaged one."""
    if not line.startswith(old):
        crc, _, line = line.partition(b" ")
        if int(crc, 16) != zlib.crc32(line):
            raise ValueError("its crc32 differs")
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("brackets in brackets") from None
