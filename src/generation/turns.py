"""Who may add to a folder of answers: one process that wants all of them, or any number that have a share each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from src.kernel.locks import turn, turn_if_free
from src.kernel.store import LOCK

NAME, DOING = "generate", "making answers of this kind"
_turn = partial(turn, name=NAME, doing=DOING, ends=True)


@contextmanager
def alone(cells: Path) -> Iterator[None]:
    """Wait for everybody else, shares too, so that nothing is made twice; nobody begins meanwhile."""
    with _turn(cells / LOCK):
        for share in sorted(cells.glob(f"{LOCK}-*")):
            with _turn(share):
                pass
        yield


@contextmanager
def beside_others(cells: Path, share: str) -> Iterator[None]:
    """Wait for who wants all, and for an earlier start of the same share (a requeued task's old self).

    Other shares may begin meanwhile.
    """
    lock = cells / f"{LOCK}-{share}"
    while True:
        with ExitStack() as held:
            with _turn(cells / LOCK):
                free = held.enter_context(turn_if_free(lock, NAME, ends=True))
            if free:
                yield
                return
        with _turn(lock):
            pass
