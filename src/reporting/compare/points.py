"""Runs as points of a sweep: which settings differ, how they are called, and which runs are one point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, median_high
from typing import NamedTuple

import numpy as np
import pandas as pd

from src.evaluation.statistics import two_way
from src.kernel.processes import legible
from src.reporting.compare.read import USUAL, WIN, Measured, RunFolder, Settings, Table, Value, read_all

SEED = "seed"
COLUMNS = ("iteration", "win rate over base", "hard", "at equal length", "by the second judge", "over previous",
           "tokens", "KL per token", "finished", "null", "state")  # fmt: skip
"""Headings of results, behind those of the axes."""
RUN = "run"
"""An axis of its own, the name of the run folder, where settings alone do not tell runs apart."""


# Settings ------------------------------------------------------------------------------------------------------------


class Varied(NamedTuple):
    """The keys that differ between runs."""

    axes: list[str]
    """Dotted keys in which the runs differ."""
    bound: dict[str, str]
    """Keys that differ too, but follow from an axis: their effects cannot be told apart."""
    same: Settings
    """The settings that all runs have in common."""


def varied(runs: Sequence[Settings]) -> Varied:
    """Sort the keys of runs into axes, keys bound to an axis, and common ones.

    A key is bound if an axis of words determines it, or, unless it is a usual one, an axis of numbers.
    """
    axes, bound, same = list[str](), dict[str, str](), Settings()
    for key in dict.fromkeys([*USUAL, *(key for settings in runs for key in settings)]):
        values = [settings.get(key) for settings in runs]
        if len(set(map(str, values))) == 1:
            same |= {key: values[0]} if key in runs[0] else {}
            continue
        for axis in axes if key != SEED else []:
            others = [settings.get(axis) for settings in runs]
            follows = len({(str(a), str(b)) for a, b in zip(others, values, strict=True)}) == len(set(map(str, others)))
            if follows and axis != SEED and (key not in USUAL or not numeric(others)):
                bound[key] = axis
                break
        else:
            axes.append(key)
    return Varied(axes, bound, same)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def numeric(values: Sequence[Value]) -> bool:
    return all(map(is_number, values))


def order(value: Value) -> tuple[bool, float, str]:
    """Sort numbers by size, then words by the alphabet."""
    return (not is_number(value), float(value or 0) if is_number(value) else 0.0, str(value))


def in_order(values: Sequence[Value]) -> list[Value]:
    """Return each value once, sorted."""
    return sorted(dict.fromkeys(values), key=order)


def symbol(name: str) -> str:
    """Return what stands for a key in front of a value, and as the heading of a column."""
    return "η" if name == "eta" else name


def short(value: Value) -> str:
    """Write a value shortly: 5e-07 as 5e-7, src.pairing.rules.BestWorst as BestWorst."""
    if value is None:
        return "–"
    if is_number(value):
        mantissa, e, exponent = f"{value:.6g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if e else mantissa
    text = str(value)
    return legible(text.rpartition(".")[2] if text.startswith("src.") else text)


def described(names: Mapping[str, str], values: Settings) -> str:
    """Write values as `η 1000, lr 1e-5`; `names` are short ones by key."""
    return ", ".join(f"{symbol(names.get(key, key))} {short(value)}" for key, value in values.items())


# Points --------------------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A mean win rate with its interval."""

    mean: float
    low: float
    high: float
    number: int
    """The number of prompts or seeds that it is the mean of."""
    over: str
    """`held-out prompts`, or `seeds × … held-out prompts`."""

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True, eq=False, repr=False)
class Point:
    number: int
    """From 1, in the order of the values."""
    values: Settings
    """The values of all axes but the seed, by dotted key."""
    runs: list[RunFolder]
    """One run per seed."""

    def steps(self, iteration: int) -> list[Measured]:
        return [step for run in self.runs for step in run.steps if step.iteration == iteration]

    @property
    def iterations(self) -> list[int]:
        return sorted({step.iteration for run in self.runs for step in run.steps})

    def win(self, iteration: int, second: bool = False) -> Estimate | None:
        """Return the win rate over the prompts of the only run, or over seeds and prompts.

        `second`: by the second judge, None unless all runs have the same one.
        """
        steps = self.steps(iteration)
        if second:
            steps = [step.second for step in steps if step.second]
            if len(steps) < len(self.steps(iteration)) or len({str(step.measurement) for step in steps}) > 1:
                return None
        if len(steps) > 1:
            wins = by_seed([step.items[""] for step in steps])
            interval, _ = two_way(wins, self.runs[0].confidence)
            return Estimate(wins.mean(), *interval, len(steps), f"seeds × {wins.shape[1]} held-out prompts")
        for step in steps:
            mean, low, high = (step.numbers[f"{WIN}{end}"] for end in ("", "_low", "_high"))
            return Estimate(mean, low, high, int(step.numbers["prompts"]), "held-out prompts")
        return None

    def mean(self, iteration: int, name: str) -> float | None:
        """Return the mean of another number over the seeds."""
        values = [step.numbers[name] for step in self.steps(iteration) if name in step.numbers]
        return fmean(values) if values else None

    @property
    def best(self) -> tuple[float, int]:
        """The highest mean win rate, and the first iteration that has it; (0, 0) without an evaluation."""
        wins = [(win.mean, -t) for t in self.iterations if (win := self.win(t))]
        mean, t = max(wins, default=(0.0, 0))
        return mean, -t


def by_seed(items: Sequence[Table]) -> np.ndarray:
    """Return the values of the prompts that all seeds have, (seed, prompt); the seeds' means where they share none."""
    common = pd.concat(list(items), axis=1, join="inner").to_numpy(float).T
    return common if common.shape[1] > 1 else np.array([[each.mean()] for each in items])


class Row(NamedTuple):
    """A run at an iteration; `step` is None for a run that has no evaluation yet."""

    point: Point
    run: RunFolder
    step: Measured | None


@dataclass(frozen=True)
class Comparison:
    """All runs that are compared."""

    title: str
    varied: Varied
    points: list[Point]
    missing: list[str]
    """A sentence for each run that cannot be read, and each sweep that has points without a run folder."""

    @property
    def runs(self) -> list[RunFolder]:
        return [run for point in self.points for run in point.runs]

    @property
    def rows(self) -> Iterator[Row]:
        return (Row(point, run, step) for point in self.points for run in point.runs for step in run.steps or [None])

    @cached_property
    def names(self) -> dict[str, str]:
        """The usual name of each axis, or its last part where that tells it from all others and from COLUMNS."""
        lasts = [USUAL.get(key, key.rpartition(".")[2]) for key in self.varied.axes]
        pairs, lasts = list(zip(self.varied.axes, lasts, strict=True)), [*lasts, "point", "seeds", *COLUMNS]
        return {key: legible(last if lasts.count(last) == 1 and last[0] != "_" else key) for key, last in pairs}

    @property
    def axes(self) -> list[str]:
        """All axes but the seed."""
        return [axis for axis in self.varied.axes if axis != SEED]

    @property
    def seeded(self) -> bool:
        return SEED in self.varied.axes

    @property
    def iterations(self) -> list[int]:
        return sorted({t for point in self.points for t in point.iterations})

    @property
    def common_iteration(self) -> int:
        """The last iteration that at least half of the points with an evaluation have come to."""
        return median_high(point.iterations[-1] for point in self.points if point.iterations)

    @cached_property
    def measurements(self) -> list[list[Point]]:
        """Points whose win rates can be compared with each other, the most numerous first."""
        groups: dict[str, list[Point]] = {}
        for point in self.points:
            if steps := [step for run in point.runs for step in run.steps]:
                groups.setdefault(str(sorted(steps[0].measurement.items())), []).append(point)
        return sorted(groups.values(), key=len, reverse=True)

    def name(self, point: Point) -> str:
        return described(self.names, point.values) or "the only point"


def compare_folders(folders: Sequence[Path], title: str, not_begun: Sequence[str] = ()) -> Comparison:
    """Read run folders and sort them into points."""
    runs, damaged = read_all(folders)
    differs = varied([run.settings for run in runs])
    if len({str([run.settings.get(key) for key in differs.axes]) for run in runs}) < len(runs):
        differs.axes.append(RUN)
    varying = [{key: run.settings.get(key) for key in differs.axes} | ({RUN: run.name} if RUN in differs.axes else {})
               for run in runs]  # fmt: skip
    points: dict[str, Point] = {}
    for run, settings in sorted(zip(runs, varying, strict=True), key=lambda each: [order(v) for v in each[1].values()]):
        values = {key: value for key, value in settings.items() if key != SEED}
        points.setdefault(str(values), Point(len(points) + 1, values, [])).runs.append(run)
    return Comparison(title, differs, list(points.values()), [*not_begun, *damaged])
