"""Runs as points of a sweep: equal settings but for the seed are one point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, median_high
from typing import NamedTuple

from src.experiment.selection import identity_of
from src.reporting.compare.read import WIN, Damaged, RunFolder, Step, read_all
from src.reporting.compare.settings import COPY, SEED, Settings, Varied, described, order, short_names, varied


class Estimate(NamedTuple):
    """A mean win rate with its interval."""

    mean: float
    low: float
    high: float
    number: int
    """How many prompts or seeds it is a mean of."""
    over: str
    """`prompts` or `seeds`."""

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


def interval(values: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Returns the mean of independent values and its Student-t interval; a point where they are all equal."""
    import numpy as np
    from scipy import stats

    mean = float(np.mean(values))
    half = float(np.std(values, ddof=1) / np.sqrt(len(values)) * stats.t.ppf((1 + confidence) / 2, len(values) - 1))
    return mean, mean - half, mean + half


@dataclass(frozen=True, eq=False, repr=False)
class Point:
    number: int
    """From 1, in the order of the values."""
    values: Settings
    """Of all axes but the seed, by dotted key."""
    runs: list[RunFolder]
    """One a seed."""

    def steps(self, iteration: int) -> list[Step]:
        return [step for run in self.runs for step in run.steps if step.iteration == iteration]

    @property
    def iterations(self) -> list[int]:
        return sorted({step.iteration for run in self.runs for step in run.steps})

    def win(self, iteration: int) -> Estimate | None:
        """Returns the win rate over the prompts of the only run, or over the seeds that have this iteration."""
        steps = self.steps(iteration)
        if len(steps) > 1:
            mean, low, high = interval([step.numbers[WIN] for step in steps], self.runs[0].confidence)
            return Estimate(mean, low, high, len(steps), "seeds")
        for step in steps:
            mean, low, high = (step.numbers[f"{WIN}{end}"] for end in ("", "_low", "_high"))
            return Estimate(mean, low, high, int(step.numbers["prompts"]), "prompts")
        return None

    def mean(self, iteration: int, name: str) -> float | None:
        """Returns the mean of another number over the seeds."""
        values = [step.numbers[name] for step in self.steps(iteration) if name in step.numbers]
        return fmean(values) if values else None

    @property
    def best(self) -> tuple[float, int]:
        """The highest mean win rate, and the first iteration that has it; (0, 0) without an evaluation."""
        wins = [(win.mean, -t) for t in self.iterations if (win := self.win(t))]
        mean, t = max(wins, default=(0.0, 0))
        return mean, -t


class Row(NamedTuple):
    """A run at an iteration; `step` is None for a run that has no evaluation yet."""

    point: Point
    run: RunFolder
    values: Settings
    """Of all axes."""
    step: Step | None

    @property
    def iteration(self) -> int:
        return self.step.iteration if self.step else 0


@dataclass(frozen=True)
class Comparison:
    """All runs that are compared."""

    title: str
    runs: list[RunFolder]
    varied: Varied
    points: list[Point]
    rows: list[Row]
    identity: str
    """Follows from what was asked for, and from where that lies: the same while a sweep grows."""
    damaged: list[Damaged] = field(default_factory=list)
    not_begun: list[str] = field(default_factory=list)
    """A sentence for each sweep that has points without a run folder."""

    @cached_property
    def names(self) -> dict[str, str]:
        """Short names of the axes."""
        return short_names(self.varied.axes)

    @property
    def axes(self) -> list[str]:
        """All axes but the seed."""
        return [axis for axis in self.varied.axes if axis != SEED]

    @property
    def seeded(self) -> bool:
        return SEED in self.varied.axes

    @property
    def iterations(self) -> list[int]:
        return sorted({row.iteration for row in self.rows if row.step})

    @property
    def common_iteration(self) -> int:
        """The last iteration that at least half of the points with an evaluation have come to."""
        return median_high(point.iterations[-1] for point in self.points if point.iterations)

    @cached_property
    def yardsticks(self) -> list[list[Point]]:
        """Points whose win rates can be compared with each other, the most numerous first."""
        groups: dict[str, list[Point]] = {}
        for point in self.points:
            step = next((step for run in point.runs for step in run.steps), None)
            if step:
                groups.setdefault(str(sorted(step.yardstick.items())), []).append(point)
        return sorted(groups.values(), key=len, reverse=True)

    def name(self, point: Point) -> str:
        return described(self.names, point.values) or "the only point"


def compare_folders(
    folders: Sequence[Path], title: str, identity: str = "", not_begun: Sequence[str] = ()
) -> Comparison:
    """Reads run folders and sorts them into points. Without an `identity` the comparison is that of these folders."""
    runs, damaged = read_all(folders)
    runs.sort(key=lambda run: (run.name, str(run.path)))
    differs = varied([run.settings for run in runs])
    values = [{key: run.settings.get(key) for key in differs.axes} for run in runs]
    if len({str(entry) for entry in values}) < len(runs):
        differs.axes.append(COPY)
        seen = Counter[str]()
        for entry in values:
            seen[entry_text := str(entry)] += 1
            entry[COPY] = f"no. {seen[entry_text]}"
    entries = sorted(zip(runs, values, strict=True), key=lambda entry: [order(value) for value in entry[1].values()])
    points: dict[str, Point] = {}
    rows: list[Row] = []
    for run, settings in entries:
        own = {key: value for key, value in settings.items() if key != SEED}
        point = points.setdefault(str(own), Point(len(points) + 1, own, []))
        point.runs.append(run)
        rows += [Row(point, run, settings, step) for step in run.steps or [None]]
    rows.sort(key=lambda row: (row.point.number, order(row.values.get(SEED)), row.iteration))
    runs = [run for run, _ in entries]
    return Comparison(
        title, runs, differs, list(points.values()), rows, identity or identity_of(folders), damaged, list(not_begun)
    )
