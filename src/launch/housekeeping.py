"""`verify` and `clean`: is the store whole, and what in it does no run use?"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from src.experiment.run import Run
from src.experiment.run_folder import LINKS, artifact_at
from src.kernel.artifact import WORK
from src.kernel.cells import CELLS
from src.kernel.config import UserError
from src.kernel.disk import is_held
from src.kernel.processes import bar
from src.kernel.record import RECORD, damage, read_record
from src.kernel.store import MARK, Store, unfinished
from src.launch.slurm import client
from src.launch.slurm.ledger import Ledger


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
    found = f"{len(artifacts)} artifact{'s' * (len(artifacts) != 1)} in {run.store}"
    print(f"{found}, " + (f"{len(lines)} problem{'s' * (len(lines) > 1)}" if lines else "all whole"))
    if lines:
        print("a run makes a damaged artifact again before it reads it; to have it at once, delete its folder and run")
    return 3 if lines else 0


def clean(run: Run, confirmed: bool) -> int:
    """List artifacts no run folder links to and unfinished ones, with sizes; remove them with `--yes`."""
    store = _store(run)
    artifacts = store.artifacts()  # before the links: what is made from now on is not in it
    linked = _linked(run, store)
    unused = [path for path in artifacts if path.resolve() not in linked] + store.leftovers()
    queued = _queued(store)
    cells = _unused_cells(store, run)  # while the unfinished artifacts are there that use the others
    removed = 0
    for folder in [*unused, *cells]:
        kept, size = "", _size(folder)
        if folder.resolve() != store.root.resolve() / folder.parent.name / folder.name:
            kept = "it lies behind a link"
        elif folder.name.partition(".")[0] in queued:
            kept = "a job in the queue goes on from it"
        elif folder in cells and folder not in _unused_cells(store, run):
            kept = "a run has begun to use it"
        elif any(map(is_held, store.locks_of(folder))) or (confirmed and not store.remove(folder)):
            kept = "a process is making it, or its lock may not be read"
        print(f"{size / 1e6:10.1f} MB  {folder}" + (f"  kept: {kept}" if kept else ""))
        removed += not kept
    total = "removed" if confirmed else f"unused by the runs in {run.runs}; `clean --yes` removes them"
    print(f"{removed} folder{'s' * (removed != 1)} {total}" if unused or cells else f"nothing unused in {run.store}")
    return 0


def _size(folder: Path) -> int:
    """Return the bytes of a folder's files; those that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _queued(store: Store) -> set[str]:
    """Return the keys of unfinished artifacts that jobs in SLURM's queue make; where SLURM is silent, of any job."""
    ledger = Ledger(store.root)
    keys = {path.name.partition(".")[0] for path in store.leftovers()} & ledger.makers().keys()
    try:
        return keys & ledger.under_way(client.queue()).keys() if keys else keys
    except UserError as error:
        print(f"{error}; what was submitted is kept")
        return keys


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
    """Return the artifacts that run folders link to, at any depth and behind links in the folder of runs.

    Raises UserError where they cannot be known: what a run uses would look unused.
    """
    if not run.runs.is_dir():
        raise UserError(f"runs: no folder {run.runs}; without its links every artifact would look unused")

    def refuse(error: OSError) -> None:
        raise UserError(f"runs: {error.filename}: {error.strerror}; what it uses would look unused")

    root, copies = store.root.resolve(), set[Path]()
    elsewhere = [path for path in run.runs.iterdir() if path.is_symlink()]
    links = list(elsewhere)
    for place in (run.runs, *(path for path in elsewhere if path.is_dir())):
        for folder, folders, files in os.walk(place, onerror=refuse):
            if LINKS in Path(folder).relative_to(place).parts:
                links += [path for name in (*folders, *files) if (path := Path(folder, name)).is_symlink()]
                if RECORD in files:  # links were followed when this was copied
                    record = read_record(Path(folder))
                    copies.add(root / str(record["kind"]) / str(record["key"]))
            elif "report.md" in files and LINKS not in folders:
                raise UserError(f"runs: {folder} has no links to its artifacts; run it again or remove it")
    places = [link.resolve() if link in elsewhere else artifact_at(link, root) for link in links]
    if lost := next((link for link, place in zip(links, places, strict=True) if not place.exists()), None):
        raise UserError(f"runs: {lost} leads to {os.readlink(lost)}, which is not there; run it again or remove it")
    used = {place.resolve() for place in (*places, *copies) if place.resolve().parent.parent == root}
    if not used:
        raise UserError(f"runs: no run folder in {run.runs} has an artifact of {store.root}; name the right one")
    return used


def _store(run: Run) -> Store:
    if not run.store.is_dir():
        raise UserError(f"store: no folder {run.store}; nothing was made there yet")
    store = Store(run.store)
    if not (store.root / MARK).is_file():
        raise UserError(f"store: {store.root} holds no {MARK}, which a run writes into a store; is it one?")
    return store
