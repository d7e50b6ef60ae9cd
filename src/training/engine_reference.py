"""Reference log-probabilities from an engine (`hardware.reference_engine`), in place of src/training/reference.py.

In: pairs, policy. Out: REFERENCE rows, in the order of the pairs, and `metrics.json`. Off by default: the engine rounds
otherwise than training does, so log-ratios do not begin at zero (docs/generation_vllm.md has how far).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from pydantic import PositiveInt

from src.generation.contract import Engine, Measuring, Sequence
from src.kernel.artifact import WORK
from src.kernel.cells import CELLS, Cells
from src.kernel.config import Free, config
from src.kernel.processes import Crew, run_in_processes
from src.kernel.progress import bar
from src.kernel.rows import PAIRS, REFERENCE, Row, kept_aside, read_rows, write_metrics, write_rows
from src.training.lengths import Lengths, fitted
from src.training.reference import count_cut, logp_columns

TITLE = "reference"
TOGETHER = 32
"""Pairs handed to the engine and saved at a time: it is busy, and a kill loses seconds."""


@runtime_checkable
class MeasuringEngine(Engine, Measuring, Protocol):
    """What `hardware.reference_engine` may be."""


class Todo(NamedTuple):
    """A pair, by its number, within the limits of training."""

    number: int
    prompt_id: str
    sides: list[Sequence]

    @property
    def tokens(self) -> int:
        return max(len(side.prompt) + len(side.answer) for side in self.sides)


@config
class EngineReference:
    kind: ClassVar[str] = "reference"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    lengths: Lengths
    engine: MeasuringEngine
    workers: Free[PositiveInt]
    """Processes; each takes the engine's devices."""
    nodes: Free[PositiveInt]
    """Machines they are on."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        pairs_folder, policy = inputs
        pairs = read_rows(pairs_folder, PAIRS)
        cells = Cells(out / WORK / CELLS)
        missing = [self._todo(i, pair) for i, pair in enumerate(pairs) if str(i) not in cells.values]
        longest_first = sorted(missing, key=lambda todo: (-todo.tokens, todo.number))
        with kept_aside(pairs, PAIRS, out / WORK):
            if missing:
                self._measure(longest_first, policy, out / WORK, cells, len(pairs))
            rows = [pair | logp_columns(pair["prompt_id"], *cells.values[str(i)]) for i, pair in enumerate(pairs)]
        write_rows(out, rows, REFERENCE)
        write_metrics(out, count_cut(pairs, self.lengths))

    def _todo(self, number: int, pair: Row) -> Todo:
        fit = fitted(pair, self.lengths)
        return Todo(number, pair["prompt_id"], [Sequence(fit.prompt, fit.chosen), Sequence(fit.prompt, fit.rejected)])

    def _measure(self, missing: list[Todo], policy: Path, work: Path, cells: Cells, total: int) -> None:
        """In this order: the longest first, so that too little memory shows at once."""
        engine = self.engine
        with bar(TITLE, total, total - len(missing), "pair") as progress:
            if self.workers == 1 and not engine.apart:
                measure(engine, policy, missing, cells, progress.update)
                return
            crew = Crew(TITLE, "hardware.generation", self.workers, self.nodes, engine.device, engine.devices_each)
            folder = (work / CELLS).resolve()
            job = partial(measure_share, engine, policy.resolve(), missing, folder)
            run_in_processes(job, crew, work, lambda: progress.update(len(cells.refresh())))
        cells.await_keys([str(todo.number) for todo in missing], TITLE)


def measure_share(
    engine: MeasuringEngine, policy: Path, todo: list[Todo], folder: Path, number: int, count: int
) -> None:
    """The pairs of worker `number` of `count`: each `count`-th."""
    mine = todo[number::count]
    if mine:
        measure(engine, policy, mine, Cells(folder), lambda _: None)


def measure(engine: MeasuringEngine, policy: Path, todo: list[Todo], cells: Cells, done: Callable[[int], Any]) -> None:
    """Sums over answer tokens into the cells, by the pair's number."""
    measurer = engine.measure(policy, max(pair.tokens for pair in todo))
    for start in range(0, len(todo), TOGETHER):
        some = todo[start : start + TOGETHER]
        sums = [math.fsum(logps) for logps in measurer.logps([side for pair in some for side in pair.sides])]
        told = list(zip(some, zip(sums[::2], sums[1::2], strict=True), strict=True))
        for pair, both in told:
            logp_columns(pair.prompt_id, *both)
        cells.add({str(pair.number): both for pair, both in told})
        done(len(some))
