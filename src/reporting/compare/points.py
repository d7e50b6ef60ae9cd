"""Runs as points of a sweep: equal settings but for the seed are one point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from src.experiment.select import identity_of
from src.reporting.compare.gather import WIN, Folder, Step, gather
from src.reporting.compare.varied import COPY, SEED, Value, Varied, order, short_names, told, varied

Values = dict[str, Value]
"""Dotted key of an axis -> value."""


class Estimate(NamedTuple):
    """A mean win rate and its interval."""

    mean: float
    low: float
    high: float
    number: int
    """Of prompts, or of seeds."""
    over: str
    """What the interval is over: `prompts` or `seeds`."""

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Row:
    """A run at an iteration; `step` is None for a run that has no evaluation yet."""

    point: Point
    run: Folder
    values: Values
    step: Step | None

    @property
    def iteration(self) -> int:
        return self.step.iteration if self.step else 0


@dataclass(frozen=True, eq=False, repr=False)
class Point:
    number: int
    """From 1, in the order of the values."""
    values: Values
    """Of all axes but the seed."""
    runs: list[Folder]
    """One a seed."""

    def steps(self, iteration: int) -> list[Step]:
        return [step for run in self.runs for step in run.steps if step.iteration == iteration]

    @property
    def iterations(self) -> list[int]:
        return sorted({step.iteration for run in self.runs for step in run.steps})

    def win(self, iteration: int) -> Estimate | None:
        """Over the prompts of its only run, or over the seeds that have this iteration."""
        steps = self.steps(iteration)
        if not steps:
            return None
        numbers = steps[0].numbers
        if len(steps) == 1:
            low, high = numbers[f"{WIN}_low"], numbers[f"{WIN}_high"]
            return Estimate(numbers[WIN], low, high, int(numbers["prompts"]), "prompts")
        from src.reporting.compare.significance import interval

        mean, low, high = interval([step.numbers[WIN] for step in steps], self.runs[0].confidence)
        return Estimate(mean, low, high, len(steps), "seeds")

    def mean(self, iteration: int, name: str) -> float | None:
        """Of another number, over the seeds."""
        found = [step.numbers[name] for step in self.steps(iteration) if name in step.numbers]
        return sum(found) / len(found) if found else None


@dataclass(frozen=True)
class Comparison:
    """All runs that are compared."""

    title: str
    runs: list[Folder]
    varied: Varied
    points: list[Point]
    rows: list[Row]
    identity: str = ""
    """Follows from what was asked for, and from where that lies: the same while a sweep grows."""

    @cached_property
    def names(self) -> dict[str, str]:
        """Short names of the axes."""
        return short_names(self.varied.axes)

    @property
    def axes(self) -> list[str]:
        """Without the seed."""
        return [axis for axis in self.varied.axes if axis != SEED]

    @property
    def seeded(self) -> bool:
        return SEED in self.varied.axes

    @property
    def iterations(self) -> list[int]:
        return sorted({row.iteration for row in self.rows if row.step})

    @cached_property
    def yardsticks(self) -> list[list[Point]]:
        """Points whose win rates can be compared with each other, the most numerous first."""
        found: dict[str, list[Point]] = {}
        for point in self.points:
            step = next((step for run in point.runs for step in run.steps), None)
            if step:
                found.setdefault(str(sorted(step.yardstick.items())), []).append(point)
        return sorted(found.values(), key=len, reverse=True)

    def best(self, points: Sequence[Point]) -> tuple[Point, int]:
        """Of all their iterations; of equal ones the first."""
        wins = [(point, t, point.win(t)) for point in points for t in point.iterations]
        point, t, _ = max(wins, key=lambda entry: entry[2].mean if entry[2] else 0.0)
        return point, t

    def name(self, point: Point) -> str:
        return told(self.names, point.values) or "the only point"


def compare_folders(folders: Sequence[Path], title: str, identity: str = "") -> Comparison:
    """Read run folders and sort them into points. Without an `identity` the comparison is that of these folders."""
    found = sorted(gather(folders), key=lambda run: (run.name, str(run.path)))
    differs = varied([run.settings for run in found])
    values = [{key: run.settings.get(key) for key in differs.axes} for run in found]
    doubled = Counter(str(entry) for entry in values)
    if max(doubled.values()) > 1:
        values = _with_copies(values)
        differs.axes.append(COPY)
    entries = sorted(zip(found, values, strict=True), key=lambda entry: [order(value) for value in entry[1].values()])
    points: dict[str, Point] = {}
    rows: list[Row] = []
    for run, all_values in entries:
        own = {key: value for key, value in all_values.items() if key != SEED}
        point = points.setdefault(str(own), Point(len(points) + 1, own, []))
        point.runs.append(run)
        rows += [Row(point, run, all_values, step) for step in run.steps or [None]]
    rows.sort(key=lambda row: (row.point.number, order(row.values.get(SEED)), row.iteration))
    runs = [run for run, _ in entries]
    return Comparison(title, runs, differs, list(points.values()), rows, identity or identity_of(folders))


def _with_copies(values: list[Values]) -> list[Values]:
    """Number the runs of equal settings, in the order of their names."""
    seen = Counter[str]()
    found: list[Values] = []
    for entry in values:
        seen[str(entry)] += 1
        found.append(entry | {COPY: f"no. {seen[str(entry)]}"})
    return found
