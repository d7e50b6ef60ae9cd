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

OF_CELLS = re.compile(r"[a-z_]+-[0-9a-f]{20}")
FOREIGN = "kept: it lies behind a link, or was not begun in this store"


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
    found = store.artifacts()  # before the links: what is made from now on is not in it
    linked = _linked(run, store)
    if not (store.root / MARK).is_file():
        raise UserError(f"store: {store.root} holds no {MARK}, which a run writes into a store; is it one?")
    unused = [path for path in found if path.resolve() not in linked] + store.leftovers()
    cells = _unused_cells(store, run)  # before anything goes: those of an unfinished artifact are none
    queued, submitted, busy = *_wanted(store), 0
    for path in unused:
        line, key = f"{_size(path) / 1e6:10.1f} MB  {path}", path.name.partition(".")[0]
        if not _is_ours(path, store):
            print(f"{line}  {FOREIGN}")
            busy += 1
            continue
        kept = key in queued or (not store.remove(path) if confirmed else _held(store.locks_of(path)))
        busy += kept
        told = "a job in the queue goes on from it" if key in queued else "a process is making it" if kept else ""
        began = "  saved work of a job; `retry` would go on from it" * (key in submitted and not confirmed)
        print(line + (f"  kept: {told}" if told else began))
    for folder in cells:
        if not _is_ours(folder, store):
            print(f"{_size(folder) / 1e6:10.1f} MB  {folder}  ({FOREIGN})")
            busy += 1
            continue
        if confirmed:
            kept = folder not in _unused_cells(store, run) or not store.remove(folder)
        else:
            kept = _held(store.locks_of(folder))
        busy += kept
        told = "kept: a process is adding to it" if kept else "answers or scores that no run uses"
        print(f"{_size(folder) / 1e6:10.1f} MB  {folder}  ({told})")
    unused += cells
    total = "removed" if confirmed else f"unused by the runs in {run.runs}; `clean --yes` removes them"
    print(f"{len(unused) - busy} folders {total}" if unused else f"nothing unused in {run.store}")
    return 0


def _is_ours(folder: Path, store: Store) -> bool:
    """Whether it lies in the store itself, behind no link, and was begun there, as its record or its lock says."""
    if folder.resolve() != store.root.resolve() / folder.parent.name / folder.name:
        return False
    if folder.parent.name == f".{CELLS}":
        return bool(OF_CELLS.fullmatch(folder.name))
    key = folder.name.partition(PARTIAL)[0]
    with contextlib.suppress(UserError, KeyError, TypeError):  # unfinished, damaged, or another's
        if read_record(folder)["key"] == key:
            return True
    return any((store.root / ".locks").glob(f"*-{key}.lock"))


def _held(locks: Iterable[Path]) -> bool:
    """Whether any is, as far as one may look: the store may be another user's."""
    with contextlib.suppress(OSError):
        return any(is_held(lock) for lock in locks)
    return False


def _wanted(store: Store) -> tuple[set[str], set[str]]:
    """Returns keys of what was begun: by jobs in SLURM's queue, and by any that were submitted from this store."""
    begun = {path.name.partition(".")[0] for path in store.leftovers()}
    if not begun or not (store.root / ".jobs").is_dir():
        return set(), set()
    from src.launch.slurm.ledger import queued_keys

    return queued_keys(store.root, begun)


def _unused_cells(store: Store, run: Run) -> list[Path]:
    """Neither of an artifact that a run has nor of one that is unfinished; none where a record cannot be read."""
    used = {(path / WORK / CELLS).resolve().name for path in store.leftovers()}
    try:
        used |= {read_record(path).get("cells") for path in _linked(run, store) if (path / RECORD).is_file()}
    except UserError as error:
        print(error)
        return []
    return [folder for folder in store.cell_folders() if folder.name not in used]


def _linked(run: Run, store: Store) -> set[Path]:
    """What the runs have. Raises UserError where that cannot be told: what no link names is taken for unused."""
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
    """Links to artifacts at any depth, and to run folders elsewhere, which are looked into."""

    def refuse(error: OSError) -> None:
        raise UserError(f"runs: {error.filename}: {error.strerror}; what it uses would look unused")

    elsewhere = [path for path in runs.iterdir() if path.is_symlink()]
    found = list(elsewhere)
    for place in (runs, *(path for path in elsewhere if path.is_dir())):
        for name, folders, files in os.walk(place, onerror=refuse):
            folder = Path(name)
            folders[:] = [inner for inner in folders if folder / inner != root]
            if RECORD in files or ("report.md" in files and LINKS not in folders):
                raise UserError(f"runs: {folder} has no links to its artifacts; run it again or remove it")
            names = [*folders, *files] if LINKS in folder.relative_to(place).parts else [LINKS]
            found += [folder / inner for inner in names if (folder / inner).is_symlink()]
    return found


def _store(run: Run) -> Store:
    if not run.store.is_dir():
        raise UserError(f"store: no folder {run.store}; nothing was made there yet")
    return Store(run.store)


def _size(folder: Path) -> int:
    """Bytes of its files; those that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
