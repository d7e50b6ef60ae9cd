"""Artifacts: finished folders with a record beside their files, kept in a store under the hash of what made them.

store/<kind>/<key>/            rows.parquet or a checkpoint, and record.json
store/<kind>/<key>.partial/    being made; a resumable stage keeps its progress in the folder WORK of it
store/.cells/<kind>-<hash>/    what artifacts of one kind have in common, computed once
store/.locks/                  one file lock an artifact; the kernel releases it when its owner dies
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from filelock import FileLock, Timeout

from src.cells import CELLS
from src.config import UserError, fingerprint

RECORD = "record.json"
WORK = "work"
PARTIAL = ".partial"


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


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One artifact of a plan: the stage that makes it and the nodes it reads."""

    name: str
    """Where a run shows it, such as `it2/pairs`."""
    stage: Stage
    inputs: tuple[Node, ...] = ()
    rows: int = 0
    """Expected number of rows; 0 for what has none."""
    work: int = 0
    """Expected amount of work in the stage's own unit (answers, pairs …); 0 when unknown. For forecasts."""
    workload: str = ""
    """What makes a unit of work cost what it costs: kind of work, model, hardware. For forecasts."""

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


def fingerprint_hash(value: Any) -> str:
    """sha256 of a JSON-able value, the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Store:
    """The folder of all artifacts; safe for any number of processes on one file system with working `flock`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, node: Node) -> Path:
        return self.root / node.stage.kind / node.key

    def work(self, node: Node) -> Path:
        """Where a resumable stage keeps its progress while it makes the node."""
        return self.root / node.stage.kind / (node.key + PARTIAL) / WORK

    def has(self, node: Node) -> bool:
        return (self.path(node) / RECORD).is_file()

    def make(self, node: Node) -> Path:
        """Return the node's folder, making it first if it is missing; the inputs must exist.

        Two processes that ask for one artifact make it once. A crash leaves only a `.partial` folder.
        """
        final = self.path(node)
        if self.has(node):
            return final
        lock = self._lock_file(node.stage.kind, node.key)
        with locked(lock, f"{node.name}: another process is making it; waiting"):
            if not self.has(node):
                self._make(node, final)
        return final

    def _make(self, node: Node, final: Path) -> None:
        partial = final.with_name(final.name + PARTIAL)
        if not (partial / RECORD).is_file():  # else it was finished, but never renamed into place
            self._work(node, partial)
        shutil.rmtree(partial / WORK, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)  # a folder that lost its record is no artifact
        os.rename(partial, final)
        _sync(final.parent)

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
        _sync(partial)

    def cells(self, node: Node) -> Path | None:
        """Where the node's stage keeps what it shares; None where it shares nothing."""
        if not isinstance(node.stage, Sharing):
            return None
        identity = [node.stage.shared(), *(parent.key for parent in node.inputs[1:])]
        return self.root / f".{CELLS}" / f"{node.stage.kind}-{fingerprint_hash(identity)[:20]}"

    def _lock_file(self, kind: str, key: str) -> Path:
        return self.root / ".locks" / f"{kind}-{key}.lock"

    def artifacts(self) -> list[Path]:
        """Every finished artifact, in a fixed order."""
        return [path for path in self._folders() if path.suffix != PARTIAL and (path / RECORD).is_file()]

    def leftovers(self) -> list[Path]:
        """Folders of unfinished artifacts and of those that lost their record, in a fixed order."""
        return [path for path in self._folders() if path.suffix == PARTIAL or not (path / RECORD).is_file()]

    def cell_folders(self) -> list[Path]:
        """Those of every kind of cells, in a fixed order."""
        return sorted(path for path in (self.root / f".{CELLS}").glob("*") if path.is_dir())

    def _folders(self) -> list[Path]:
        return sorted(p for p in self.root.glob("*/*") if p.is_dir() and _KEYED.fullmatch(p.name))

    def remove(self, folder: Path) -> bool:
        """Remove an artifact or a leftover; False when a process is making it just now."""
        lock = self._lock_file(folder.parent.name, folder.name.removesuffix(PARTIAL))
        lock.parent.mkdir(exist_ok=True)
        try:
            with FileLock(lock, timeout=0):
                shutil.rmtree(folder)
        except Timeout:
            return False
        except FileNotFoundError:
            pass  # finished or removed meanwhile
        return True


def _share(cells: Path, link: Path) -> bool:
    """Lead a stage's folder of cells to the shared one; True when there is something in it."""
    cells.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(cells, link.parent))
    return any(cells.iterdir())


_KEYED = re.compile(r"[0-9a-f]{20}(\.partial)?")


@contextmanager
def locked(file: Path, waiting: str) -> Iterator[None]:
    """Hold the file lock `file`; says `waiting` when another process has it. The kernel releases a dead owner's."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(waiting, file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def read_record(artifact: Path) -> dict[str, Any]:
    """The record of a finished artifact. Raises UserError when it cannot be read."""
    try:
        record = json.loads((artifact / RECORD).read_text())
        record["files"]
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{artifact / RECORD}: not a readable record ({error}); delete the folder") from None


def damage(artifact: Path) -> list[str]:
    """One line for each file of an artifact that is missing, changed or unexpected; empty when it is whole."""
    try:
        expected = read_record(artifact)["files"]
    except UserError as error:
        return [str(error)]
    found = {str(p.relative_to(artifact)): p for p in sorted(artifact.rglob("*")) if p.is_file()}
    found.pop(RECORD, None)
    lines = [f"{artifact / name}: missing" for name in expected if name not in found]
    lines += [f"{path}: not in the record" for name, path in found.items() if name not in expected]
    lines += [
        f"{path}: damaged (sha256 differs from the record)"
        for name, path in found.items()
        if name in expected and sha256(path) != expected[name]["sha256"]
    ]
    return lines


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        "rows": _count_rows(folder),
        "work": node.work,
        "workload": node.workload,
        "seconds": seconds,
        "resumed": resumed,
        "cells": cells.name if cells else None,
        "files": {name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for name, p in files.items()},
        "versions": versions(),
        "commit": git_commit(),
    }
    write_atomic(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def _count_rows(folder: Path) -> int | None:
    rows = folder / "rows.parquet"
    if not rows.exists():
        return None
    import pyarrow.parquet

    return pyarrow.parquet.read_metadata(rows).num_rows


@lru_cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that move numbers."""
    packages = ("torch", "transformers", "accelerate", "tokenizers", "numpy", "deepspeed")
    return {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in packages}


@lru_cache
def git_commit() -> str:
    """Commit of the source tree, with `+dirty` when it has local changes, or `unknown` outside git."""
    root = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(("git", *words), cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)
