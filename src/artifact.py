"""Artifacts: finished folders with a record beside their files, kept in a store under the hash of what made them.

store/<kind>/<key>/            rows.parquet or a checkpoint, and record.json
store/<kind>/<key>.partial-…/  an attempt at it; a resumable stage keeps its progress in the folder WORK of it
store/<kind>/<key>.partial/    where its cells are filled in parts
store/.cells/<kind>-<hash>/    what artifacts of one kind have in common, computed once
store/.locks/                  one file lock an artifact, and its owner's beat (src/attempts.py)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from filelock import FileLock, Timeout

from src.attempts import FOLDER, PARTIAL, attempts, begin, fenced, locked, turn
from src.cells import CELLS, sync
from src.config import fingerprint
from src.provenance import DIGEST, RECORD, count_rows, digest, git_commit, sha256, versions

WORK = "work"
LOCK = ".lock"
"""In a folder of cells: begins the names of the locks of those who add to it."""


Job = Literal["setup", "generation", "ranking", "reference", "training", "evaluation", "judging", "report"]


@runtime_checkable
class Stage(Protocol):
    """A frozen config that is also the function it configures: reads finished folders, writes one."""

    kind: ClassVar[str]
    """Folder of the store; stages that write the same kind of rows share it."""
    version: ClassVar[int]
    """Raised when the code changes results that the config does not show."""
    resumable: ClassVar[bool]
    """True: finds its own progress in the folder WORK of `out` after a crash. False: starts from an empty folder."""

    def __call__(self, *inputs: Path, out: Path) -> None: ...


@runtime_checkable
class Sharing(Protocol):
    """A stage whose artifacts have parts in common, kept in the folder `work/cells` (src/cells.py) of each."""

    def shared(self) -> Any:
        """JSON-able: artifacts with equal values, and equal inputs but for the first, share their cells."""
        ...


@runtime_checkable
class Divisible(Sharing, Protocol):
    """A stage whose cells can be made in parts, by processes that know nothing of each other."""

    def fill(self, *inputs: Path, out: Path, part: int, parts: int) -> bool:
        """Make the cells that are missing of part 0 … parts - 1 of the artifact `out`; whether all parts' are there."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One artifact of a plan: the stage that makes it and the nodes it reads."""

    name: str
    """Where a run shows it, such as `it2/pairs`."""
    stage: Stage
    inputs: tuple[Node, ...] = ()
    rows: int = 0
    """Expected number of rows; 0 for what has none."""
    work: int | None = 0
    """Expected amount of work in the stage's own unit (answers, pairs …); None: unknown, 0: takes seconds."""
    workload: str = ""
    """What makes a unit of work cost what it costs: kind of work, model, hardware. For forecasts."""
    job: Job = "setup"
    """What kind of machine it wants, where a launcher gives each kind jobs of its own."""

    @cached_property
    def key(self) -> str:
        """20 hex digits: hash of stage, version, result-changing config and the keys of the inputs."""
        parts = {
            "kind": self.stage.kind,
            "version": self.stage.version,
            "config": fingerprint(self.stage),
            "inputs": [node.key for node in self.inputs],
        }
        return fingerprint_hash(parts)[:20]


def with_ancestors(*nodes: Node) -> list[Node]:
    """The nodes and all they need, each once and after everything it reads."""
    found: dict[str, Node] = {}

    def collect(node: Node) -> None:
        if node.key not in found:
            for parent in node.inputs:
                collect(parent)
            found[node.key] = node

    for node in nodes:
        collect(node)
    return list(found.values())


def fingerprint_hash(value: Any) -> str:
    """sha256 of a JSON-able value, the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Store:
    """The folder of all artifacts; safe for any number of processes on one file system with working `flock`."""

    def __init__(self, root: Path) -> None:
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
        with turn(self._lock_file(node.stage.kind, node.key), node.name):
            if not self.has(node):
                self._make(node, final)
        return final

    def forget(self, node: Node, unless: Callable[[], bool]) -> None:
        """Take the record away, so that it is no artifact any more; `unless` another process has done so meanwhile."""
        with turn(self._lock_file(node.stage.kind, node.key), node.name):
            if not unless():
                (self.path(node) / RECORD).unlink(missing_ok=True)
                sync(self.path(node))

    def _make(self, node: Node, final: Path) -> None:
        own = begin(final)
        if not (own / RECORD).is_file():  # else it was finished, but never renamed into place
            with fenced(own, node.name):
                self._work(node, own)
        shutil.rmtree(own / WORK, ignore_errors=True)
        with fenced(own, node.name):
            if self.has(node):  # of an earlier attempt that lived on
                shutil.rmtree(own, ignore_errors=True)
            else:
                shutil.rmtree(final, ignore_errors=True)  # a folder that lost its record is no artifact
                os.rename(own, final)
        shutil.rmtree(self._filling(node), ignore_errors=True)
        sync(final.parent)

    def _work(self, node: Node, partial: Path) -> None:
        """Run the stage and write the record, which says that every other file is whole and on disk."""
        resumed = partial.exists() and node.stage.resumable
        if partial.exists() and not resumed:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        cells = self.cells(node)
        resumed = (cells is not None and _share(cells, partial / WORK / CELLS)) or resumed
        start = time.monotonic()
        node.stage(*map(self.path, node.inputs), out=partial)
        seconds = round(time.monotonic() - start, 2)
        _sync_tree(partial)
        _write_record(partial, node, seconds, resumed, cells)
        sync(partial)

    def fill(self, node: Node, part: int, parts: int) -> bool:
        """Make a part of what the node shares; the inputs must exist. True where nothing of it is missing then."""
        cells, partial = self.cells(node), self._filling(node)
        assert isinstance(node.stage, Divisible) and cells
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


def _share(cells: Path, link: Path) -> bool:
    """Lead a stage's folder of cells to the shared one; True when there is something in it."""
    cells.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(exist_ok=True)
    target = os.path.relpath(cells, link.parent)
    if not link.is_symlink() or os.readlink(link) != target:
        temporary = link.with_name(f".{link.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, link)
    return any(cells.glob("*.jsonl"))


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new, never a mixture."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
