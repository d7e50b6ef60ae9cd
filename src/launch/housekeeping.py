"""`verify` and `clean`: is the store whole, and what in it does no run use?"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from src.experiment.run import Run
from src.experiment.run_folder import LINKS
from src.kernel.artifact import WORK
from src.kernel.cells import CELLS
from src.kernel.config import UserError
from src.kernel.disk import is_held
from src.kernel.processes import bar
from src.kernel.record import MARK, PARTIAL, RECORD, damage, read_record
from src.kernel.store import Store, unfinished


def verify(run: Run) -> int:
    """Check every file of every artifact against its record; exit code 3 when one is damaged."""
    store = _store(run)
    artifacts = store.artifacts()
    lines = [f"{path}: no record.json" for path in store.leftovers() if not unfinished(path)]
    with bar("verify", len(artifacts), 0, "artifact") as progress:
        for artifact in artifacts:
            lines += damage(artifact)
            progress.update(1)
    for line in lines:
        print(line)
    print(f"{len(artifacts)} artifacts in {run.store}, " + (f"{len(lines)} problems" if lines else "all whole"))
    if lines:
        print("a run makes a damaged artifact again before it reads it; to have it at once, delete its folder and run")
    return 3 if lines else 0


def clean(run: Run, confirmed: bool) -> int:
    """List artifacts no run folder links to and unfinished ones, with sizes; remove them with `--yes`."""
    store = _store(run)
    artifacts = store.artifacts()  # before the links: what is made from now on is not in it
    linked = _linked(run, store)
    if not (store.root / MARK).is_file():
        raise UserError(f"store: {store.root} holds no {MARK}, which a run writes into a store; is it one?")
    unused = [path for path in artifacts if path.resolve() not in linked] + store.leftovers()
    queued, cells = _queued(store), _unused_cells(store, run)  # before an unfinished artifact goes, whose they are
    removed = 0
    for folder in [*unused, *cells]:
        kept, size = "", _size(folder)
        if not _is_ours(folder, store):
            kept = "it lies behind a link, or was not begun in this store"
        elif folder.name.partition(".")[0] in queued:
            kept = "a job in the queue goes on from it"
        elif folder in cells and folder not in _unused_cells(store, run):
            kept = "a run has begun to use it"
        elif _held(store.locks_of(folder)) or (confirmed and not store.remove(folder)):
            kept = "a process is making it"
        print(f"{size / 1e6:10.1f} MB  {folder}" + (f"  kept: {kept}" if kept else ""))
        removed += not kept
    total = "removed" if confirmed else f"unused by the runs in {run.runs}; `clean --yes` removes them"
    print(f"{removed} folders {total}" if unused or cells else f"nothing unused in {run.store}")
    return 0


def _is_ours(folder: Path, store: Store) -> bool:
    """Say whether a folder lies in the store, behind no link, and was begun there, as its record or its lock says."""
    if folder.resolve() != store.root.resolve() / folder.parent.name / folder.name:
        return False
    if folder.parent.name == f".{CELLS}":
        return bool(re.fullmatch(r"[a-z_]+-[0-9a-f]{20}", folder.name))
    key = folder.name.partition(PARTIAL)[0]
    with contextlib.suppress(UserError, KeyError, TypeError):  # unfinished, damaged, or another's
        if read_record(folder)["key"] == key:
            return True
    return any((store.root / ".locks").glob(f"*-{key}.lock"))


def _held(locks: Iterable[Path]) -> bool:
    """Say whether a process holds any lock, as far as one may look: the store may be another user's."""
    with contextlib.suppress(OSError):
        return any(is_held(lock) for lock in locks)
    return False


def _queued(store: Store) -> set[str]:
    """Return the keys of unfinished artifacts that jobs in SLURM's queue make."""
    begun = {path.name.partition(".")[0] for path in store.leftovers()}
    if not begun or not (store.root / ".jobs").is_dir():
        return set()
    from src.launch.slurm.ledger import queued_keys

    return queued_keys(store.root, begun)


def _unused_cells(store: Store, run: Run) -> list[Path]:
    """Return the cells of no artifact that a run has or that is unfinished; none where a record cannot be read."""
    used = {(path / WORK / CELLS).resolve().name for path in store.leftovers()}
    try:
        used |= {read_record(path).get("cells") for path in _linked(run, store) if (path / RECORD).is_file()}
    except UserError as error:
        print(error)
        return []
    return [folder for folder in store.cell_folders() if folder.name not in used]


def _linked(run: Run, store: Store) -> set[Path]:
    """Return the artifacts of all runs. Raises UserError where they cannot be known: others are taken for unused."""
    if not run.runs.is_dir():
        raise UserError(f"runs: no folder {run.runs}; without its links every artifact would look unused")
    links = _links(run.runs.resolve(), store.root.resolve())
    if lost := next((link for link in links if not link.exists()), None):
        raise UserError(f"runs: {lost} leads to {os.readlink(lost)}, which is not there; run it again or remove it")
    used = {target for link in links if (target := link.resolve()).parent.parent == store.root.resolve()}
    if not used:
        raise UserError(f"runs: no run folder in {run.runs} has an artifact of {store.root}; name the right one")
    return used


def _links(runs: Path, root: Path) -> list[Path]:
    """Return the links to artifacts at any depth, and to run folders elsewhere, which are looked into."""

    def refuse(error: OSError) -> None:
        raise UserError(f"runs: {error.filename}: {error.strerror}; what it uses would look unused")

    elsewhere = [path for path in runs.iterdir() if path.is_symlink()]
    links = list(elsewhere)
    for place in (runs, *(path for path in elsewhere if path.is_dir())):
        for name, folders, files in os.walk(place, onerror=refuse):
            folder = Path(name)
            folders[:] = [inner for inner in folders if folder / inner != root]
            if RECORD in files or ("report.md" in files and LINKS not in folders):
                raise UserError(f"runs: {folder} has no links to its artifacts; run it again or remove it")
            names = [*folders, *files] if LINKS in folder.relative_to(place).parts else [LINKS]
            links += [folder / inner for inner in names if (folder / inner).is_symlink()]
    return links


def _store(run: Run) -> Store:
    if not run.store.is_dir():
        raise UserError(f"store: no folder {run.store}; nothing was made there yet")
    return Store(run.store)


def _size(folder: Path) -> int:
    """Return the bytes of a folder's files; those that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
