"""Artifacts: finished folders with a record beside their files, kept in a store under the hash of what made them.

store/.store.json              the mark of a store
store/<kind>/<key>/            rows.parquet or a checkpoint, and record.json
store/<kind>/<key>.partial-…/  an attempt at it; a resumable stage keeps its progress in the folder WORK of it
store/<kind>/<key>.partial/    where its cells are filled in parts
store/.cells/<kind>-<hash>/    what artifacts of one kind have in common, computed once
store/.locks/                  one file lock per artifact, and its owner's beat (src/kernel/disk.py)

An attempt takes what an earlier one left by renaming its folder. An earlier one that lives on, say on a node that SLURM
has lost, so writes into a folder that is no more, and harms nobody.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from src.kernel.artifact import WORK, Divisible, Node, Sharing, fingerprint_hash
from src.kernel.cells import CELLS
from src.kernel.config import Fault, UserError
from src.kernel.disk import TAKEN_OVER, make_folder, remove, remove_temporaries, sync, sync_tree, turn, write_atomic
from src.kernel.record import FOLDER, PARTIAL, RECORD, damage, write_record

MARK = ".store.json"
"""The file that makes a folder a store. It says how the store lies, for code that may lay it out otherwise one day."""
LOCK = ".lock"
"""The name, in a folder of cells, that locks of those who add to it begin with."""


class Store:
    """The folder of all artifacts; safe for any number of processes on one file system with working `flock`."""

    def __init__(self, root: Path) -> None:
        """Raises UserError for a folder of other files."""
        strange = sorted(path.name for path in root.iterdir() if path.name[0] != ".") if root.is_dir() else []
        if strange and not (root / MARK).exists():
            if any(FOLDER.fullmatch(path.name) for path in root.glob("*/*")):
                raise UserError(f"store: {root} holds artifacts, but {MARK} is missing; copy that too (cp -a)")
            raise UserError(f"store: {root} holds {strange[0]} and is no store; choose an empty folder, or a new one")
        self.root = root

    def path(self, node: Node) -> Path:
        """Return where the node's artifact is, or will be."""
        return self.root / node.stage.kind / node.key

    def has(self, node: Node) -> bool:
        return (self.path(node) / RECORD).is_file()

    def work(self, node: Node) -> Path | None:
        """Return where a resumable stage keeps its progress with the node; None where nobody has begun."""
        attempt = attempt_of(self.path(node))
        return attempt and attempt / WORK

    def begun(self, node: Node) -> bool:
        """Say whether an attempt, or some cells, will be gone on with."""
        return bool(attempt_of(self.path(node))) or self._filling(node).exists()

    def cells(self, node: Node) -> Path | None:
        """Return where the node's stage keeps what it shares; None where it shares nothing."""
        if not isinstance(node.stage, Sharing):
            return None
        identity = [node.stage.shared(), *(parent.key for parent in node.inputs[1:])]
        return self.root / f".{CELLS}" / f"{node.stage.kind}-{fingerprint_hash(identity)[:20]}"

    def artifacts(self) -> list[Path]:
        """Return every finished artifact, in a fixed order."""
        return [path for path in self._folders() if not unfinished(path) and (path / RECORD).is_file()]

    def leftovers(self) -> list[Path]:
        """Return the folders of unfinished artifacts and of those that lost their record, in a fixed order."""
        return [path for path in self._folders() if unfinished(path) or not (path / RECORD).is_file()]

    def cell_folders(self) -> list[Path]:
        """Return the folders of cells of every kind, in a fixed order."""
        return sorted(path for path in (self.root / f".{CELLS}").glob("*-" + 20 * "[0-9a-f]") if path.is_dir())

    def locks_of(self, folder: Path) -> list[Path]:
        """Return the locks held while an artifact or a leftover is made, or while cells are added to their folder."""
        if folder.parent.name == f".{CELLS}":
            return [*folder.glob(f"{LOCK}*")]
        lock = self.lock(folder.parent.name, folder.name.partition(PARTIAL)[0])
        return [lock, *(folder / WORK / CELLS).glob(f"{LOCK}*")]

    def _folders(self) -> list[Path]:
        folders = self.root.iterdir() if self.root.exists() else ()  # `glob` would pass over what may not be read
        paths = (path for kind in folders if kind.is_dir() for path in kind.iterdir() if FOLDER.fullmatch(path.name))
        return sorted(path for path in paths if path.is_dir())

    def _filling(self, node: Node) -> Path:
        return self.root / node.stage.kind / (node.key + PARTIAL)

    def lock(self, kind: str, key: str) -> Path:
        """Return the lock of whoever makes an artifact."""
        return self.root / ".locks" / f"{kind}-{key}.lock"

    def mark(self) -> None:
        """Write that the folder is a store, before its first artifact."""
        if not (self.root / MARK).exists():
            make_folder(self.root)
            write_atomic(self.root / MARK, b'{"layout": 1}\n')
            sync(self.root)

    def make(self, node: Node) -> Path:
        """Return the node's folder, making it first if it is missing; the inputs must exist.

        Two processes that ask for one artifact make it once. A crash leaves only a `.partial` folder.
        """
        if not self.has(node):
            self.mark()
            with turn(self.lock(node.stage.kind, node.key), node.name):
                if not self.has(node):
                    self._make(node)
        return self.path(node)

    def _make(self, node: Node) -> None:
        final = self.path(node)
        if final.exists():
            print(f"{node.name}: {final / RECORD}: missing; the artifact is made again", file=sys.stderr, flush=True)
        attempt = begin(final)
        try:
            if not (attempt / RECORD).is_file():  # else it was finished, but never renamed into place
                self._run_stage(node, attempt)
            shutil.rmtree(attempt / WORK, ignore_errors=True)
            if self.has(node):  # an earlier attempt that lived on has finished it
                shutil.rmtree(attempt, ignore_errors=True)
            else:
                shutil.rmtree(final, ignore_errors=True)  # a folder that lost its record is no artifact
                os.rename(attempt, final)
        except Exception as error:
            if not attempt.exists():
                raise Fault(f"{node.name}: {TAKEN_OVER}") from error
            kept = (*attempt.rglob("*"), *(attempt / WORK / CELLS).glob("*.jsonl"))
            of_use = node.stage.resumable or (attempt / RECORD).is_file()
            if not (of_use and any(path.is_file() for path in kept)):
                shutil.rmtree(attempt, ignore_errors=True)
            raise
        shutil.rmtree(self._filling(node), ignore_errors=True)
        for folder in (final.parent, self.root):
            sync(folder)

    def _run_stage(self, node: Node, out: Path) -> None:
        """Run the stage and write the record, which says that every other file is whole and on disk."""
        resumed = out.exists() and node.stage.resumable
        if out.exists() and not resumed:
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        remove_temporaries(out)
        cells = self.cells(node)
        resumed = (cells is not None and _link_cells(cells, out / WORK / CELLS)) or resumed
        start = time.monotonic()
        node.stage(*map(self.path, node.inputs), out=out)
        seconds = round(time.monotonic() - start, 2)
        sync_tree(out)
        write_record(out, node, seconds, resumed, cells)
        sync(out)

    def fill(self, node: Node, part: int, parts: int) -> bool:
        """Make a part of the node's cells; the inputs must exist. True where no cell is missing then."""
        cells, out = self.cells(node), self._filling(node)
        assert isinstance(node.stage, Divisible) and cells
        self.mark()
        (out / WORK).mkdir(parents=True, exist_ok=True)  # an artifact begun: its cells are in use
        _link_cells(cells, out / WORK / CELLS)
        return node.stage.fill(*map(self.path, node.inputs), out=out, part=part, parts=parts)

    def remove(self, folder: Path) -> bool:
        """Remove an artifact, a leftover or a folder of cells; False when a process holds one of its locks."""
        with suppress(Timeout), ExitStack() as held:
            for lock in self.locks_of(folder):
                lock.parent.mkdir(exist_ok=True)
                held.enter_context(FileLock(lock, timeout=0))
            with suppress(FileNotFoundError):  # finished or removed meanwhile
                shutil.rmtree(folder, ignore_errors=folder.parent.name == f".{CELLS}")  # NFS keeps open locks a while
            return True
        return False


def unfinished(folder: Path) -> bool:
    """Say whether a folder of the store is, by its name, that of something under way."""
    return PARTIAL in folder.name


# Damage found before use ---------------------------------------------------------------------------------------------


def repair_inputs(node: Node, store: Store, alone: bool = False) -> None:
    """Make everything whole that making `node` reads."""
    for parent in node.inputs:
        repair(parent, store, alone)


def repair(node: Node, store: Store, alone: bool = False, weights: bool = True) -> None:
    """Make one artifact whole, and what it is made from where it has to be made again.

    Without `weights` the weights of models are not looked at. `alone`: other jobs have the machines to make it, so it
    is only forgotten. Raises Fault then, and where it is missing.
    """
    if store.has(node):
        lines = damage(store.path(node), weights)
        if not lines:
            return
        for line in lines:
            print(f"{node.name}: {line}", file=sys.stderr, flush=True)
        with turn(store.lock(node.stage.kind, node.key), node.name):
            if store.has(node) and damage(store.path(node), weights):  # else another process has forgotten it meanwhile
                remove(store.path(node) / RECORD)
    if not alone:
        repair_inputs(node, store)
        store.make(node)
    elif not store.has(node):
        raise Fault(f"{node.name}: damaged, so it counts as missing now; `retry` has it made again")


@contextmanager
def by_origin(nodes: Iterable[Node], store: Store) -> Iterator[None]:
    """Name a checkpoint, in a UserError of the body, by the folder or hub id that its copy in the store came from."""
    try:
        yield
    except UserError as error:
        for node in nodes:
            if isinstance(repo := getattr(node.stage, "repo", None), str):
                for folder in (store.path(node).resolve(), store.path(node)):
                    error.args = (str(error).replace(str(folder), repo),)
        raise


# Attempts ------------------------------------------------------------------------------------------------------------


def attempt_of(final: Path) -> Path | None:
    """Return the folder of an unfinished attempt at the artifact `final`; no link, which may lead anywhere."""
    folders = sorted(final.parent.glob(f"{final.name}{PARTIAL}-*"))
    return next((folder for folder in folders if folder.is_dir() and not folder.is_symlink()), None)


def begin(final: Path) -> Path:
    """Return the folder of a new attempt, with what an earlier one left."""
    attempt = final.with_name(f"{final.name}{PARTIAL}-{uuid.uuid4().hex[:8]}")
    if earlier := attempt_of(final):
        with suppress(FileNotFoundError):  # whoever made it has just finished after all
            os.rename(earlier, attempt)
    return attempt


# Cells ---------------------------------------------------------------------------------------------------------------


def _link_cells(cells: Path, link: Path) -> bool:
    """Link a stage's folder of cells to the shared one; True when there is something in it."""
    make_folder(cells)
    link.parent.mkdir(exist_ok=True)
    with suppress(FileExistsError):
        link.symlink_to(os.path.relpath(cells, link.parent))
    return any(cells.glob("*.jsonl"))
