"""Score token sequences in batches of a token budget, in one process or several.

An item is scored by itself, whatever it is batched with, and is a cell (src/kernel/cells.py): kept once it is there.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import PositiveFloat, PositiveInt

from src.kernel.artifact import Takes
from src.kernel.cells import CELLS, Cells
from src.kernel.config import Device, Free, UserError, config
from src.kernel.processes import bar, run_in_processes
from src.kernel.rows import NOT_FINITE
from src.modeling.policy import AttentionKind

Texts = tuple["array[int]", ...]
NumberType = Literal["float32", "bfloat16", "float16"]
"""Number type of a ranker's weights and products."""
Scorer = Callable[[list[Texts]], list[float]]
"""A loaded model. The score of an item must not depend on the others."""


class Item(NamedTuple):
    """Texts that get one score."""

    key: str
    texts: Texts
    """Token ids. A text of several items is one object, so that it is held once."""
    name: str = ""
    """Name of the item in messages."""

    @property
    def tokens(self) -> int:
        return sum(map(len, self.texts))


@config
class Work:
    """Devices and batches of scoring; they move no score beyond its last digits."""

    device: Free[Device]
    attention: Free[AttentionKind]
    batch_tokens: Free[PositiveInt]
    """Tokens of a batch; a longer sequence is a batch of its own."""
    workers: Free[PositiveInt]
    """Processes, a device each."""
    save_seconds: Free[PositiveFloat]
    """Seconds between two saves: what a killed process loses."""

    def takes(self) -> Takes:
        """Return the devices of all workers."""
        if self.device != "cuda":
            return Takes("hardware.ranking.workers", cuda=False)
        return Takes("hardware.ranking.workers", self.workers, self.workers)


Opener = Callable[[Work], Scorer]
"""Loads a scorer. It can be pickled."""


def work_off(opener: Opener, items: Iterable[Item], work: Work, folder: Path, unit: str) -> dict[str, float]:
    """Return the score of every item, by its key; what is in the cells of `folder` is not computed again.

    Raises UserError when a worker dies, naming it; finished scores are kept.
    """
    cells, wanted = Cells(folder / CELLS), {item.key: item for item in items}
    missing = [item for key, item in wanted.items() if key not in cells.values]
    if missing:
        with bar("rank", len(wanted), len(wanted) - len(missing), unit) as progress:
            if work.workers == 1:
                run_batches(opener(work), batches(missing, work.batch_tokens), cells, work, progress.update)
            else:
                job = partial(score_share, opener, missing, work, cells.folder.resolve())
                run_in_processes(
                    job, "rank", work.workers, work.device, 1, folder, lambda: progress.update(len(cells.refresh()))
                )
    return {key: float(cells.values[key]) for key in wanted}


def score_share(opener: Opener, items: list[Item], work: Work, folder: Path, number: int, count: int) -> None:
    """Score each `count`-th batch, in one of several processes."""
    if mine := batches(items, work.batch_tokens)[number::count]:
        run_batches(opener(work), mine, Cells(folder, read=False), work, lambda _: None)


def batches(items: list[Item], tokens: int) -> list[list[Item]]:
    """Cut the items into batches of at most `tokens`, the longest first, so that too little memory shows at once."""
    cut: list[list[Item]] = []
    filled = tokens
    for item in sorted(items, key=lambda item: (-item.tokens, item.key)):
        if filled + item.tokens > tokens:
            cut.append([])
            filled = 0
        cut[-1].append(item)
        filled += item.tokens
    return cut


def run_batches(scorer: Scorer, todo: list[list[Item]], cells: Cells, work: Work, done: Callable[[int], Any]) -> None:
    """Score batch after batch; save now and then, and whatever ends it."""
    with cells.saving(work.save_seconds) as save:
        for batch in todo:
            for item, score in zip(batch, scorer([item.texts for item in batch]), strict=True):
                if not math.isfinite(score):
                    place = f" for {item.name}" if item.name else ""
                    raise UserError(f"ranker: it gave {NOT_FINITE}{place}; try ranker.precision=float32")
                save(item.key, score)
            done(len(batch))
