"""`python -m src.main sync [runs=...]`: upload the W&B runs that W&B has not seen, then tell it who used what.

runs=runs/*      a glob of run folders, one folder, several by commas, or a sweep's name
dry_run=true     say what would be uploaded, and upload nothing
again=true       upload also what was uploaded before
delete=true      then remove from disk what was uploaded

The uploading is `wandb sync`'s, which says how far it is. A run that is being written is left for the next time.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from src.kernel.config import UserError
from src.kernel.locks import is_held, turn_if_free
from src.reporting.tracking import spool
from src.reporting.tracking.lineage import link, unlinked
from src.reporting.tracking.login import has_key, server
from src.reporting.tracking.state import FOLDER, damage, states
from src.reporting.tracking.uploading import reachable, upload

LOCK = ".sync.lock"
"""Beside the run folders: one upload at a time."""
NAMED = 3
"""Of what is missing."""


class Asked(NamedTuple):
    runs: str = "runs/*"
    dry_run: bool = False
    again: bool = False
    delete: bool = False


class Found(NamedTuple):
    """W&B's folders of some run folders."""

    ready: list[Path]
    busy: list[Path]


def sync(words: Sequence[str]) -> int:
    """Returns the exit code. Raises UserError where W&B cannot be had, or does not take all."""
    from src.experiment.select import folders

    asked = _asked(words)
    given = folders(asked.runs)
    bad = damage(given)
    for line in bad.values():
        print(f"left out: {line}")
    runs = [folder for folder in given if folder not in bad]
    if asked.dry_run:
        _show(_found(runs, asked.again), "would upload")
    else:
        _carry_out(runs, asked)
    if bad:
        raise UserError(f"sync: {len(bad)} of {len(given)} run folders left out: {_some(bad)}; the reasons are above")
    return 0


def _carry_out(runs: list[Path], asked: Asked) -> None:
    with ExitStack() as held, _writable():
        for parent in sorted({folder.resolve().parent for folder in runs}):
            if not held.enter_context(turn_if_free(parent / LOCK, str(parent))):
                raise UserError(f"sync: another process uploads from {parent}; wait for it")
        found = _found(runs, asked.again)
        if found.ready or any(unlinked(runs, asked.again)):
            _sync(runs, found, asked.again)
        else:
            _show(found, "to upload")
        if asked.delete:
            _delete(runs)


@contextmanager
def _writable() -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise UserError(f"sync: cannot write {error.filename}; are these runs yours?") from None


def _sync(runs: list[Path], found: Found, again: bool) -> None:
    address = _server()
    if not reachable(address):
        raise UserError(f"sync: {address} does not answer; all is kept, the same command tries again")
    _show(found, "uploading")
    if found.ready:
        upload(found.ready, address, again)
    with _asking() as api:
        for line in link(runs, api, again):
            print(f"lineage: {line}")
    left = [place for place in found.ready if not spool.synced(place)]
    if left:
        raise UserError(
            f"sync: {len(left)} of {len(found.ready)} were not uploaded ({_some(left)}); the same command tries again"
        )


def _some(places: Iterable[Path]) -> str:
    names = list(map(str, places))
    return ", ".join(names[:NAMED]) + ", …" * (len(names) > NAMED)


def _asked(words: Iterable[str]) -> Asked:
    found: dict[str, Any] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or key not in Asked._fields:
            raise UserError(f"sync: {word} is none of {', '.join(f'{name}=' for name in Asked._fields)}")
        if key != "runs" and value not in ("true", "false"):
            raise UserError(f"sync: {key} is true or false, not {value}")
        if key in found:
            raise UserError(f"sync: {key} is given twice" + "; several by commas" * (key == "runs"))
        found[key] = value if key == "runs" else value == "true"
    return Asked(**found)


def _found(runs: Iterable[Path], again: bool) -> Found:
    """No part of a W&B run overtakes an earlier one that is being written."""
    found = Found([], [])
    for folder in runs:
        written, held_up = _being_written(folder), set[str]()
        for place in spool.places(folder) if again else spool.unsent_of(folder):
            if spool.run_id(place) in held_up or written(place):
                held_up.add(spool.run_id(place))
                found.busy.append(place)
            else:
                found.ready.append(place)
    return found


def _being_written(folder: Path) -> Callable[[Path], bool]:
    """Whether a process writes one of W&B's folders: it holds its family's lock, or W&B has not ended the file yet."""
    held = {path.stem for path in folder.glob(f"{FOLDER}/*.lock") if _is_held(path)}
    families = {run.id: family for family, of in states(folder).items() for run in of}

    def written(place: Path) -> bool:
        family = families.get(spool.run_id(place))
        return (family in held if family else bool(held)) or not spool.settled(place)

    return written


def _is_held(lock: Path) -> bool:
    try:
        return is_held(lock)
    except OSError as error:
        raise UserError(f"sync: cannot read {lock} ({error.strerror}); are these runs yours?") from None


def _show(found: Found, doing: str) -> None:
    for place in found.busy:
        print(f"left for later: {place} (it is being written, or what it goes on from is)")
    if doing == "would upload":
        for place in found.ready:
            print(f"{spool.size([place]) / 1e6:10.1f} MB  {place}")
    print(f"{doing}: {len(found.ready)} parts of W&B runs, {spool.size(found.ready) / 1e6:.1f} MB", flush=True)


def _server() -> str:
    """Raises UserError where nobody is logged in."""
    if not has_key():
        raise UserError("sync: not logged in to W&B; `wandb login` or WANDB_API_KEY=…, then the same command")
    return server()


@contextmanager
def _asking() -> Iterator[Any]:
    """W&B's interface to what it has. Raises UserError where W&B cannot be asked."""
    import wandb

    mode = os.environ.pop("WANDB_MODE", None)
    try:
        yield wandb.Api()
    except UserError:
        raise
    except Exception as error:  # of the network, the server, or W&B's own
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"sync: W&B says {said} (the same command tries again)") from error
    finally:
        if mode is not None:
            os.environ["WANDB_MODE"] = mode


def _delete(runs: Iterable[Path]) -> None:
    """`wandb clean` would remove online runs too, whether they were cut off or are being written.

    What only W&B's file tells stays: how far a killed process came, and all of a run whose state is lost.
    """
    removed = Counter[str]()
    for folder in runs:
        written = _being_written(folder)
        known = {run.id: run.unfinished for of in states(folder).values() for run in of}
        for place in spool.places(folder):
            needed = known.get(spool.run_id(place), place.name) == place.name
            if spool.synced(place) and not needed and not written(place):
                removed["bytes"] += spool.size([place])
                removed["folders"] += 1
                shutil.rmtree(place)
        for name in (folder / "wandb").glob("latest-run"):
            if name.is_symlink() and not name.exists():
                name.unlink()
    print(f"removed: {removed['folders']} parts of W&B runs that were uploaded, {removed['bytes'] / 1e6:.1f} MB")
