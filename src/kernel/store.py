"""Artifacts: finished folders with a record beside their files, kept in a store under the hash of what made them.

store/.store.json              what this folder is (src/kernel/layout.py)
store/<kind>/<key>/            rows.parquet or a checkpoint, and record.json
store/<kind>/<key>.partial-…/  an attempt at it; a resumable stage keeps its progress in the folder WORK of it
store/<kind>/<key>.partial/    where its cells are filled in parts
store/.cells/<kind>-<hash>/    what artifacts of one kind have in common, computed once
store/.locks/                  one file lock an artifact, and its owner's beat (src/kernel/attempts.py)
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from src.kernel.artifact import WORK, Divisible, Node, Sharing, fingerprint_hash
from src.kernel.attempts import FOLDER, PARTIAL, attempts, begin, fenced, locked, turn
from src.kernel.cells import CELLS
from src.kernel.config import fingerprint
from src.kernel.disk import make_folder, remove, remove_temporaries, sync, sync_tree, write_atomic
from src.kernel.layout import check_layout, mark_store
from src.kernel.provenance import DIGEST, RECORD, count_rows, digest, git_commit, sha256, versions

LOCK = ".lock"
"""In a folder of cells: begins the names of the locks of those who add to it."""


class Store:
    """The folder of all artifacts; safe for any number of processes on one file system with working `flock`."""

    def __init__(self, root: Path) -> None:
        """Raises UserError for a store that other code has laid out."""
        check_layout(root)
        self.root = root

    def path(self, node: Node) -> Path:
        return self.root / node.stage.kind / node.key

    def work(self, node: Node) -> Path | None:
        """Where a resumable stage keeps its progress while it makes the node; None where nobody has begun."""
        begun = attempts(self.path(node))
        return begun[0] / WORK if begun else None

    def begun(self, node: Node) -> bool:
        """Whether an attempt, or some of its cells, will be gone on with."""
        return bool(attempts(self.path(node))) or self._filling(node).exists()

    def has(self, node: Node) -> bool:
        return (self.path(node) / RECORD).is_file()

    def make(self, node: Node) -> Path:
        """Return the node's folder, making it first if it is missing; the inputs must exist.

        Two processes that ask for one artifact make it once. A crash leaves only a `.partial` folder.
        """
        final = self.path(node)
        if self.has(node):
            return final
        mark_store(self.root)
        with turn(self._lock_file(node.stage.kind, node.key), node.name):
            if not self.has(node):
                self._make(node, final)
        return final

    def forget(self, node: Node, unless: Callable[[], bool]) -> None:
        """Take the record away, so that it is no artifact any more; `unless` another process has done so meanwhile."""
        with turn(self._lock_file(node.stage.kind, node.key), node.name):
            if not unless():
                remove(self.path(node) / RECORD)

    def _make(self, node: Node, final: Path) -> None:
        if final.exists():
            print(f"{node.name}: {final / RECORD}: missing; the artifact is made again", file=sys.stderr, flush=True)
        own = begin(final)
        if not (own / RECORD).is_file():  # else it was finished, but never renamed into place
            try:
                with fenced(own, node.name):
                    self._work(node, own)
            except Exception:
                if not (node.stage.resumable and _has_files(own)):
                    shutil.rmtree(own, ignore_errors=True)
                raise
        shutil.rmtree(own / WORK, ignore_errors=True)
        with fenced(own, node.name):
            if self.has(node):  # of an earlier attempt that lived on
                shutil.rmtree(own, ignore_errors=True)
            else:
                shutil.rmtree(final, ignore_errors=True)  # a folder that lost its record is no artifact
                os.rename(own, final)
        shutil.rmtree(self._filling(node), ignore_errors=True)
        for folder in (final.parent, self.root):
            sync(folder)

    def _work(self, node: Node, partial: Path) -> None:
        """Run the stage and write the record, which says that every other file is whole and on disk."""
        resumed = partial.exists() and node.stage.resumable
        if partial.exists() and not resumed:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        remove_temporaries(partial)
        cells = self.cells(node)
        resumed = (cells is not None and _share(cells, partial / WORK / CELLS)) or resumed
        start = time.monotonic()
        node.stage(*map(self.path, node.inputs), out=partial)
        seconds = round(time.monotonic() - start, 2)
        sync_tree(partial)
        _write_record(partial, node, seconds, resumed, cells)
        sync(partial)

    def fill(self, node: Node, part: int, parts: int) -> bool:
        """Make a part of what the node shares; the inputs must exist. True where nothing of it is missing then."""
        cells, partial = self.cells(node), self._filling(node)
        assert isinstance(node.stage, Divisible) and cells
        mark_store(self.root)
        with locked(self._lock_file("filling", node.key), f"{node.name}: another process begins a share; waiting"):
            (partial / WORK).mkdir(parents=True, exist_ok=True)  # an artifact begun: its cells are in use
            _share(cells, partial / WORK / CELLS)
        return node.stage.fill(*map(self.path, node.inputs), out=partial, part=part, parts=parts)

    def cells(self, node: Node) -> Path | None:
        """Where the node's stage keeps what it shares; None where it shares nothing."""
        if not isinstance(node.stage, Sharing):
            return None
        identity = [node.stage.shared(), *(parent.key for parent in node.inputs[1:])]
        return self.root / f".{CELLS}" / f"{node.stage.kind}-{fingerprint_hash(identity)[:20]}"

    def _filling(self, node: Node) -> Path:
        return self.root / node.stage.kind / (node.key + PARTIAL)

    def _lock_file(self, kind: str, key: str) -> Path:
        return self.root / ".locks" / f"{kind}-{key}.lock"

    def artifacts(self) -> list[Path]:
        """Every finished artifact, in a fixed order."""
        return [path for path in self._folders() if not unfinished(path) and (path / RECORD).is_file()]

    def leftovers(self) -> list[Path]:
        """Folders of unfinished artifacts and of those that lost their record, in a fixed order."""
        return [path for path in self._folders() if unfinished(path) or not (path / RECORD).is_file()]

    def cell_folders(self) -> list[Path]:
        """Those of every kind of cells, in a fixed order."""
        return sorted(path for path in (self.root / f".{CELLS}").glob("*") if path.is_dir())

    def _folders(self) -> list[Path]:
        return sorted(p for p in self.root.glob("*/*") if p.is_dir() and FOLDER.fullmatch(p.name))

    def locks_of(self, folder: Path) -> list[Path]:
        """Those that a process holds while it makes an artifact or a leftover; the first may not be there yet."""
        own = self._lock_file(folder.parent.name, folder.name.partition(PARTIAL)[0])
        return [own, *(folder / WORK / CELLS).glob(f"{LOCK}*")]

    def remove(self, folder: Path) -> bool:
        """Remove an artifact or a leftover; False when a process is making it just now."""
        (lock, *_) = self.locks_of(folder)
        lock.parent.mkdir(exist_ok=True)
        try:
            with FileLock(lock, timeout=0), _nobody_in(folder / WORK / CELLS):
                shutil.rmtree(folder)
        except Timeout:
            return False
        except FileNotFoundError:
            pass  # finished or removed meanwhile
        return True


def unfinished(folder: Path) -> bool:
    """Whether a folder of the store, by its name, is that of something under way."""
    return PARTIAL in folder.name


def remove_cells(folder: Path) -> bool:
    """Remove a folder of cells; False when a process holds one of its locks just now."""
    try:
        with _nobody_in(folder):
            shutil.rmtree(folder, ignore_errors=True)
    except Timeout:
        return False
    return True


@contextmanager
def _nobody_in(cells: Path) -> Iterator[None]:
    """Raises Timeout when a process adds to these cells just now."""
    with ExitStack() as held:
        for lock in cells.glob(f"{LOCK}*"):
            held.enter_context(FileLock(lock, timeout=0))
        yield


def _has_files(attempt: Path) -> bool:
    """Of its own, or cells."""
    return any(path.is_file() for path in attempt.rglob("*")) or any((attempt / WORK / CELLS).glob("*.jsonl"))


def _share(cells: Path, link: Path) -> bool:
    """Lead a stage's folder of cells to the shared one; True when there is something in it."""
    make_folder(cells)
    link.parent.mkdir(exist_ok=True)
    target = os.path.relpath(cells, link.parent)
    if not link.is_symlink() or os.readlink(link) != target:
        temporary = link.with_name(f".{link.name}.{uuid.uuid4().hex[:8]}")
        temporary.symlink_to(target)
        os.replace(temporary, link)
    return any(cells.glob("*.jsonl"))


def _write_record(folder: Path, node: Node, seconds: float, resumed: bool, cells: Path | None) -> None:
    found = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    files = {name: p for name, p in found.items() if name != RECORD and not name.startswith(f"{WORK}/")}
    record = {
        "name": node.name,
        "kind": node.stage.kind,
        "key": node.key,
        "version": node.stage.version,
        "config": fingerprint(node.stage),
        "inputs": [{"kind": n.stage.kind, "key": n.key} for n in node.inputs],
        "rows": count_rows(folder),
        "work": node.work,
        "workload": node.workload,
        "seconds": seconds,
        "resumed": resumed,
        "cells": cells.name if cells else None,
        "files": {name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for name, p in files.items()},
        "versions": versions(),
        "commit": git_commit(),
    }
    record[DIGEST] = digest(json.loads(json.dumps(record)))
    write_atomic(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())
