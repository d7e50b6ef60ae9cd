"""Work off a queue of token sequences to be scored: in batches of a token budget, in one process or several.

An item is scored by itself, whatever it is batched with, and is a cell (src/kernel/cells.py): kept once it is there.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import PositiveFloat, PositiveInt

from src.kernel.cells import CELLS, Cells
from src.kernel.config import Device, Free, UserError, config
from src.kernel.processes import Crew, bar, run_in_processes
from src.kernel.rows import NOT_FINITE
from src.modeling.policy import AttentionKind

Texts = tuple["array[int]", ...]
NumberType = Literal["float32", "bfloat16", "float16"]
"""Of weights and products of a ranker."""


class Item(NamedTuple):
    """What is scored together: texts by their place in the queue."""

    key: str
    texts: tuple[int, ...]
    of: str = ""
    """What it is called in messages."""


class Queue(NamedTuple):
    """Every text once, as token ids, and every item once."""

    texts: list[array[int]]
    items: list[Item]

    def tokens(self, item: Item) -> int:
        return sum(len(self.texts[i]) for i in item.texts)


class Scorer(Protocol):
    """A loaded model. The score of an item must not depend on the others."""

    def __call__(self, items: list[Texts]) -> list[float]: ...


class Opener(Protocol):
    """Loads a scorer; can be pickled."""

    def __call__(self, work: Work) -> Scorer: ...


@config
class Work:
    """Where and how many sequences are scored at a time; moves no score beyond its last digits."""

    device: Free[Device]
    attention: Free[AttentionKind]
    batch_tokens: Free[PositiveInt]
    """Tokens of a batch; a longer sequence is a batch of its own."""
    workers: Free[PositiveInt]
    """Processes, a device each."""
    save_seconds: Free[PositiveFloat]
    """Between two saves: what a killed process loses."""


def work_off(open_scorer: Opener, queue: Queue, work: Work, folder: Path, unit: str) -> dict[str, float]:
    """Scores every item, by its key; what is in the cells of `folder` is not computed again.

    Raises UserError when a worker dies, naming it; finished scores are kept.
    """
    cells = Cells(folder / CELLS)
    missing = [item for item in queue.items if item.key not in cells.values]
    if missing:
        rest = queue._replace(items=missing)
        with bar("rank", len(queue.items), len(queue.items) - len(missing), unit) as progress:
            if work.workers == 1:
                run_batches(open_scorer(work), rest, batches(rest, work.batch_tokens), cells, work, progress.update)
            else:
                crew = Crew("rank", work.workers, work.device)
                job = partial(score_share, open_scorer, rest, work, (folder / CELLS).resolve())
                run_in_processes(job, crew, folder, lambda: progress.update(len(cells.refresh())))
    return {item.key: float(cells.values[item.key]) for item in queue.items}


def score_share(open_scorer: Opener, queue: Queue, work: Work, folder: Path, number: int, count: int) -> None:
    """Scores each `count`-th batch of the queue, in one of several processes."""
    mine = batches(queue, work.batch_tokens)[number::count]
    if mine:
        run_batches(open_scorer(work), queue, mine, Cells(folder), work, lambda _: None)


def batches(queue: Queue, tokens: int) -> list[list[Item]]:
    """Cuts the queue into batches of at most `tokens`, the longest first, so that too little memory shows at once."""
    found: list[list[Item]] = []
    filled = tokens
    for item in sorted(queue.items, key=lambda item: (-queue.tokens(item), item.key)):
        if filled + queue.tokens(item) > tokens:
            found.append([])
            filled = 0
        found[-1].append(item)
        filled += queue.tokens(item)
    return found


def run_batches(
    scorer: Scorer, queue: Queue, todo: list[list[Item]], cells: Cells, work: Work, done: Callable[[int], Any]
) -> None:
    """Scores batch after batch; saves now and then, and whatever ends it."""
    pending: dict[str, float] = {}
    saved = time.monotonic()
    try:
        for batch in todo:
            scores = _scores(scorer, queue, batch)
            pending |= {item.key: score for item, score in zip(batch, scores, strict=True)}
            done(len(batch))
            if time.monotonic() - saved > work.save_seconds:
                cells.add(pending)
                pending, saved = {}, time.monotonic()
    finally:
        if pending:
            cells.add(pending)


def _scores(scorer: Scorer, queue: Queue, items: list[Item]) -> list[float]:
    try:
        scores = scorer([tuple(queue.texts[i] for i in item.texts) for item in items])
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" and "allocate memory" not in str(error):
            raise
        raise UserError(
            "rank: out of memory; lower hardware.ranking.batch_tokens, or what the ranker reads (ranker.max_tokens)"
        ) from error
    for item, score in zip(items, scores, strict=True):
        if not math.isfinite(score):
            of = f" for {item.of}" if item.of else ""
            raise UserError(f"ranker: it gave {NOT_FINITE}{of}; try ranker.precision=float32")
    return scores
