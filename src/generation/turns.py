"""Who may add to a folder of answers: one that wants all of them, or any number that have a share each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from src.artifact import LOCK, locked

WAITING = "generate: another process is making answers of this kind; waiting"


@contextmanager
def alone(cells: Path) -> Iterator[None]:
    """After everybody else, those with shares too: nothing they make is made again."""
    cells.mkdir(parents=True, exist_ok=True)
    with locked(cells / LOCK, WAITING), ExitStack() as shares:
        for lock in sorted(cells.glob(f"{LOCK}-*")):
            shares.enter_context(locked(lock, WAITING))
        yield


@contextmanager
def beside_others(cells: Path, share: str) -> Iterator[None]:
    """With other shares, not with one who wants all, nor with one of the same share (a requeued task's old self)."""
    with ExitStack() as own:
        with locked(cells / LOCK, WAITING):
            own.enter_context(locked(cells / f"{LOCK}-{share}", WAITING))
        yield
