"""Damage is found before use: what is about to be read is compared with its record, and made again where it differs."""

from __future__ import annotations

import sys
from pathlib import Path

from src.kernel.artifact import Node
from src.kernel.config import Fault
from src.kernel.provenance import RECORD, changed, sound_record
from src.kernel.store import Store

WEIGHTS = (".safetensors", ".bin", ".pt")
"""Ends of the names of files that no report reads."""
_whole: set[tuple[object, ...]] = set()
"""What this process has compared already: a file's place, inode, size and time."""


def repair_inputs(node: Node, store: Store, alone: bool = False) -> None:
    """Have everything whole that making `node` reads."""
    for parent in node.inputs:
        repair(parent, store, alone)


def repair(node: Node, store: Store, alone: bool = False, weights: bool = True) -> None:
    """Have one artifact whole; without `weights` those are not looked at. What it is made from is made again too where
    it is missing or damaged.

    `alone`: other jobs have the machines to make it, so it is only forgotten. Raises Fault then, and where another has
    forgotten it.
    """
    if store.has(node):
        record = store.path(node) / RECORD
        before = _seen(record)
        lines = damage_of(store.path(node), weights)
        if not lines:
            return
        for line in lines:
            print(f"{node.name}: {line}", file=sys.stderr, flush=True)
        store.forget(node, unless=lambda: _seen(record) != before)
    if alone and store.has(node):  # another process has made it again meanwhile
        return repair(node, store, alone, weights)
    if alone:
        raise Fault(f"{node.name}: damaged, so it counts as missing now; `retry` has it made again")
    repair_inputs(node, store)
    store.make(node)


def damage_of(artifact: Path, weights: bool = True) -> list[str]:
    """One line for each file that differs from the record; each file is read once a process, and after a change."""
    record, lines = sound_record(artifact)
    if record is None:
        return lines
    fresh: list[Path] = []

    def looked_at(path: Path) -> bool:
        if (path.suffix in WEIGHTS and not weights) or _seen(path) in _whole:
            return False
        fresh.append(path)
        return True

    lines = changed(artifact, record, looked_at)
    if not lines:
        _whole.update(map(_seen, fresh))
    return lines


def _seen(path: Path) -> tuple[object, ...]:
    try:
        found = path.stat()
    except OSError:
        return (path, None)
    return (path, found.st_ino, found.st_size, found.st_mtime_ns)
