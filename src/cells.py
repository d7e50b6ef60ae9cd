"""Cells: what was worked out once for a piece of text and need not be again, whichever artifact asks.

A folder of JSON-lines files, each written by one process: `[key, value]` a line. A line torn by a crash is not read.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from src.config import UserError

CELLS = "cells"
"""Inside a stage's folder WORK: the cells it shares with every artifact of the same identity."""


def cell_key(*parts: str) -> str:
    """32 hex digits that depend on the texts and their order."""
    return hashlib.sha256(json.dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Cells:
    """key -> JSON value; any number of processes may read and add at the same time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._own = self._new_file()
        self._read: dict[Path, int] = {}
        self.values: dict[str, Any] = {}
        self.refresh()

    def refresh(self) -> int:
        """Read what other processes have added since; returns how many cells that are."""
        known = len(self.values)
        for path in sorted(self._folder.glob("*.jsonl")):
            start = self._read.get(path, 0)
            if path == self._own or path.stat().st_size <= start:
                continue
            with path.open("rb") as file:
                file.seek(start)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read[path] = start + len(whole)
            self.values |= _parsed(whole, path)
        return len(self.values) - known

    def add(self, values: dict[str, Any]) -> None:
        """On disk when it returns."""
        try:
            with self._own.open("a") as file:
                file.write("".join(json.dumps(item) + "\n" for item in values.items()))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self._own = self._new_file()  # the old one may end in a torn line
            raise
        self.values |= values

    def _new_file(self) -> Path:
        return self._folder / f"{uuid.uuid4().hex}.jsonl"


def _parsed(lines: bytes, path: Path) -> dict[str, Any]:
    try:
        return dict(map(json.loads, lines.splitlines()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it, and what it held is computed again") from None
