"""Tests of neighbours: paired by prompt, by item, or by seed where there are several, with Holm's correction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from src.evaluation.statistics import mean_interval, two_way
from src.reporting.compare.points import SEED, Comparison, Point, by_seed, described, numeric, order, short, symbol
from src.reporting.compare.read import Measured, RunFolder, Settings, Table

ITERATION = "iteration"


class Paired(NamedTuple):
    """The mean of differences, its Student-t interval and two-sided p value; 1 where all differences are the same."""

    mean: float
    low: float
    high: float
    p: float
    number: int
    """The number of prompts, items or seeds."""


class Pair(NamedTuple):
    """Measurements of two runs of one seed whose points are neighbours, or of two iterations of one run."""

    points: tuple[Point, Point]
    measured: tuple[Measured, Measured]
    key: str
    """The key in which they differ: an axis, or `iteration`."""
    step: str
    """Such as `η 100 → 1000`."""
    common: Settings
    """The settings that they have in common."""
    confidence: float

    @property
    def other(self) -> str:
        """The artifacts for which the two cannot be compared; empty where they can."""
        first, second = (each.measurement for each in self.measured)
        others = [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]
        return f"other {', '.join(others)}" if others else ""

    def has(self, point: Point, iteration: int) -> bool:
        return point in self.points and iteration in [each.iteration for each in self.measured]


class Difference(NamedTuple):
    """The difference of two neighbours, the second less the first."""

    pair: Pair
    benchmark: str
    """With its task, where it has several; empty for win rates."""
    where: str
    """The settings that they have in common, as text."""
    over: str
    """`prompts`, `items` or `seeds`."""
    paired: Paired | None
    holm: float | None = None
    """p, corrected for the number of comparisons."""

    @property
    def reason(self) -> str:
        """Why there is no number."""
        return "" if self.paired else f"not comparable: {self.pair.other or f'fewer than two {self.over} are common'}"

    @property
    def differs(self) -> bool:
        """True where they differ at the 5% level, after the correction."""
        return self.holm is not None and self.holm < 0.05


def paired(first: Table, second: Table, confidence: float) -> Paired | None:
    """Compare values by item; return None where fewer than two items are common."""
    from scipy import stats

    values = (second - first).dropna().to_numpy()
    if len(values) < 2:
        return None
    mean = float(values.mean())
    if np.ptp(values) < 1e-12:
        return Paired(mean, mean, mean, 1.0, len(values))
    test: Any = stats.ttest_1samp(values, 0.0)
    return Paired(mean, *mean_interval(values, confidence), float(test.pvalue), len(values))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values so that the probability of any false 'differs' is at most alpha."""
    p = np.asarray(p_values, dtype=float)
    ascending = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[ascending] = np.maximum.accumulate(np.minimum(1.0, p[ascending] * np.arange(len(p), 0, -1)))
    return corrected.tolist()


def _corrected(differences: Sequence[Difference]) -> list[Difference]:
    corrected = iter(holm([difference.paired.p for difference in differences if difference.paired]))
    return [each._replace(holm=next(corrected)) if each.paired else each for each in differences]


Of = Callable[[RunFolder], list[Measured]]


def _neighbours(comparison: Comparison, of: Of) -> Iterator[Pair]:
    """Pair the runs of points that differ in one key alone: neighbouring numbers, or any two words."""
    for key in comparison.axes:
        groups: dict[str, list[Point]] = {}
        for point in comparison.points:
            groups.setdefault(str(_without(point.values, key)), []).append(point)
        for group in groups.values():
            group.sort(key=lambda point: order(point.values[key]))
            ordered = numeric([point.values[key] for point in group])
            for points in pairwise(group) if ordered else combinations(group, 2):
                step = f"{symbol(comparison.names[key])} {' → '.join(short(point.values[key]) for point in points)}"
                others = {run.settings.get(SEED): run for run in points[1].runs}
                for run in points[0].runs:
                    other = others.get(run.settings.get(SEED))
                    theirs = {(each.benchmark, each.iteration): each for each in of(other)} if other else {}
                    for first in of(run):
                        second = theirs.get((first.benchmark, first.iteration))
                        if second and first.key != second.key:  # both may have the same one, such as a start policy's
                            common = _without(points[0].values, key) | _seed(comparison, run)
                            common[ITERATION] = first.iteration
                            yield Pair(points, (first, second), key, step, common, run.confidence)


def _iterations(comparison: Comparison, of: Of) -> Iterator[Pair]:
    """Pair the iterations of each run with the next."""
    for point in comparison.points:
        for run in point.runs:
            common = point.values | _seed(comparison, run)
            for first, second in pairwise(of(run)):
                if first.benchmark == second.benchmark and second.iteration == first.iteration + 1:
                    step = f"{ITERATION} {first.iteration} → {second.iteration}"
                    yield Pair((point, point), (first, second), ITERATION, step, common, run.confidence)


def _without(values: Settings, key: str) -> Settings:
    return {axis: value for axis, value in values.items() if axis != key}


def _seed(comparison: Comparison, run: RunFolder) -> Settings:
    return {SEED: run.settings.get(SEED)} if comparison.seeded else {}


def win_rate_differences(comparison: Comparison) -> list[Difference]:
    """Compare all neighbours run by run, then over seeds; each kind is corrected for its own number."""
    by_prompt = _by_item(comparison, lambda run: run.steps, "prompts")
    return by_prompt + (_over_seeds(comparison) if comparison.seeded else [])


def benchmark_differences(comparison: Comparison) -> list[Difference]:
    """Compare all neighbours task by task: items of one task may gain what those of another lose."""
    return _by_item(comparison, lambda run: run.benchmarks, "items")


def _by_item(comparison: Comparison, of: Of, over: str) -> list[Difference]:
    differences: list[Difference] = []
    for pair in (*_neighbours(comparison, of), *_iterations(comparison, of)):
        first, second = pair.measured
        for task in dict.fromkeys([""] if pair.other else [*first.items, *second.items]):
            before, after = (each.items.get(task, pd.Series(dtype=float)) for each in pair.measured)
            result = None if pair.other else paired(before, after, pair.confidence)
            name = f"{first.benchmark}: {task}" if task else first.benchmark
            differences.append(Difference(pair, name, described(comparison.names, pair.common), over, result))
    return _corrected(differences)


def _over_seeds(comparison: Comparison) -> list[Difference]:
    """Compare neighbours by the win probabilities of their common seeds and prompts."""
    groups: dict[object, list[Pair]] = {}
    for pair in _neighbours(comparison, lambda run: run.steps):
        groups.setdefault((pair.points[0].number, pair.points[1].number, pair.measured[0].iteration), []).append(pair)
    differences: list[Difference] = []
    for group in groups.values():
        pair = next((pair for pair in group if pair.other), group[0])
        result = None
        if not pair.other and len(group) > 1:
            items = ([each.measured[i].items[""] for each in group] for i in (0, 1))
            less = by_seed([after - before for before, after in zip(*items, strict=True)])
            interval, p = two_way(less, pair.confidence)
            result = Paired(less.mean(), *interval, p, len(less))
        where = described(comparison.names, _without(pair.common, SEED))
        differences.append(Difference(pair, "", where, "seeds", result))
    return _corrected(differences)
