"""Cells: what was worked out once for a piece of text and need not be again, whichever artifact asks.

A folder of files, each written by one process: a line is the crc32 of the rest in hex, and `[key, value]` in JSON. A
line torn by a crash is not read, a damaged one neither. Lines of old have no crc32.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from src.kernel.config import UserError
from src.kernel.disk import make_folder, sync

CELLS = "cells"
"""Inside a stage's folder WORK: the cells it shares with every artifact of the same identity."""
SEEN_LATE_S = 90.0
"""How long what another node has written may stay unseen."""


def cell_key(*parts: str) -> str:
    """32 hex digits that depend on the texts and their order."""
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
        """Read what other processes have added since; returns the keys that are new."""
        fresh: list[str] = []
        for path in sorted(self.folder.glob("*.jsonl")):
            start = self._read.get(path, 0)
            if path == self._own or path.stat().st_size <= start:
                continue
            with path.open("rb") as file:
                file.seek(start)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read[path] = start + len(whole)
            for key, value in self._compacted(whole, path):
                if key in self.values:
                    self.again.append((key, value, path))
                else:
                    self.values[key] = value
                    fresh.append(key)
        return fresh

    def _compacted(self, lines: bytes, path: Path) -> list[tuple[str, Any]]:
        found, damaged = [], 0
        for line in lines.split(b"\n")[:-1]:
            try:
                key, value = cell_of(line)
                hash(key)
                found.append((key, self._compact(value)))
            except (ValueError, TypeError, KeyError):
                damaged += 1
        if damaged:
            print(f"{path}: {damaged} damaged lines; what they held is computed again", file=sys.stderr, flush=True)
        return found

    def add(self, values: dict[str, Any]) -> None:
        """On disk when it returns."""
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

    def await_keys(self, keys: list[str], title: str) -> None:
        """Other nodes' files may take a while to show: network file systems cache what a folder holds.

        Raises UserError when they do not show at all.
        """
        until = time.monotonic() + SEEN_LATE_S
        while lacking := sum(key not in self.values for key in keys):
            if time.monotonic() > until:
                raise UserError(f"{title}: {lacking} of {len(keys)} are not to be found; do all nodes share the store?")
            time.sleep(1)
            self.refresh()

    def _new_file(self) -> Path:
        return self.folder / f"{uuid.uuid4().hex}.jsonl"


def line_of(key: str, value: Any) -> str:
    """As `cell_of` reads it."""
    return with_crc(json.dumps((key, value)))


def cell_of(line: bytes) -> tuple[str, Any]:
    """Its key and value. Raises ValueError or TypeError for a line that is not as it was written."""
    key, value = json_of(line, old=b"[")
    return key, value


def with_crc(told: str) -> str:
    """A line of JSON as `json_of` reads it."""
    return f"{zlib.crc32(told.encode()):08x} {told}\n"


def json_of(line: bytes, old: bytes) -> Any:
    """Lines of old have no crc32 and begin with `old`. Raises ValueError for one that is not as it was written."""
    if not line.startswith(old):
        crc, _, line = line.partition(b" ")
        if int(crc, 16) != zlib.crc32(line):
            raise ValueError("its crc32 differs")
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("brackets in brackets") from None
