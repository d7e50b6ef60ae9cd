"""Who may add to a folder of answers: one that wants all of them, or any number that have a share each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from src.kernel.attempts import Watch, turn, turn_if_free
from src.kernel.store import LOCK

NAME, DOING = "generate", "making answers of this kind"
_turn = partial(turn, name=NAME, doing=DOING, ends=True)


@contextmanager
def alone(cells: Path) -> Iterator[None]:
    """After everybody else, those with shares too: nothing they make is made again."""
    with _turn(cells / LOCK):  # no share begins from here on
        shares = [(lock, Watch(lock)) for lock in sorted(cells.glob(f"{LOCK}-*"))]
        for lock, watch in shares:
            with _turn(lock, watch=watch):
                pass
        yield


@contextmanager
def beside_others(cells: Path, share: str) -> Iterator[None]:
    """With other shares, not with one who wants all, nor with one of the same share (a requeued task's old self).

    While it waits for the latter, others may begin.
    """
    while True:
        with ExitStack() as own:
            with _turn(cells / LOCK):
                free = own.enter_context(turn_if_free(cells / f"{LOCK}-{share}", NAME, ends=True))
            if free:
                yield
                return
        with _turn(cells / f"{LOCK}-{share}"):
            pass
