"""Whether neighbours differ: paired by prompt, by item, or by seed where there are several, with Holm's correction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import Any, NamedTuple

from src.reporting.compare.points import Comparison, Point, interval
from src.reporting.compare.read import WIN, RunFolder, Scores, Step
from src.reporting.compare.settings import SEED, Settings, described, numeric, order, shown, symbol

ITERATION = "iteration"
LEAST = 2
"""Prompts, items or seeds of which a difference can be tested."""


class Paired(NamedTuple):
    """The mean of differences, its Student-t interval and two-sided p value.

    Equal differences have no variance that a t test could go by: the interval is a point, and p is the sign test's.
    """

    mean: float
    low: float
    high: float
    p: float
    number: int
    """Of prompts, items or seeds."""


class Difference(NamedTuple):
    """The difference of two neighbours, the second less the first."""

    benchmark: str
    """With its task, where it has several; empty for win rates."""
    points: tuple[Point, Point]
    iterations: tuple[int, int]
    key: str
    """In which they differ: an axis, or `iteration`."""
    step: str
    """Such as `η 100 → 1000`."""
    where: str
    """What they have in common."""
    over: str
    """`prompts`, `items` or `seeds`."""
    paired: Paired | None
    reason: str
    """Why there is no number."""
    holm: float | None = None
    """p, corrected for the number of comparisons."""

    @property
    def differs(self) -> bool:
        """At the 5% level, after the correction."""
        return self.holm is not None and self.holm < 0.05


def paired(first: Any, second: Any, confidence: float) -> Paired | None:
    """Compares values by item, two Series; returns None where fewer than two items are common."""
    import numpy as np
    from scipy import stats

    common = first.index.intersection(second.index).sort_values()
    if len(common) < LEAST:
        return None
    before, after = first[common].to_numpy(), second[common].to_numpy()
    values = after - before
    mean, low, high = interval(values, confidence)
    rounding = 1e-12 * max(np.abs(before).max(), np.abs(after).max())
    if np.ptp(values) <= rounding:
        return Paired(mean, mean, mean, 1.0 if abs(mean) <= rounding else 2.0 ** (1 - len(common)), len(common))
    test: Any = stats.ttest_1samp(values, 0.0)
    return Paired(mean, low, high, float(test.pvalue), len(common))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p values so that one of all that are called different is wrong with probability alpha at most."""
    import numpy as np

    p = np.asarray(p_values, dtype=float)
    ascending = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[ascending] = np.maximum.accumulate(np.minimum(1.0, p[ascending] * np.arange(len(p), 0, -1)))
    return corrected.tolist()


def _corrected(differences: Sequence[Difference]) -> list[Difference]:
    corrected = iter(holm([difference.paired.p for difference in differences if difference.paired]))
    return [each._replace(holm=next(corrected)) if each.paired else each for each in differences]


class Pair(NamedTuple):
    """Two runs of one seed whose points are neighbours, or one run with itself, whose iterations are."""

    points: tuple[Point, Point]
    runs: tuple[RunFolder, RunFolder]
    key: str
    step: str
    """Such as `η 100 → 1000`; empty between iterations."""
    rest: Settings
    """What they have in common, but for the seed."""


def _pairs(comparison: Comparison) -> Iterator[Pair]:
    """Pairs by seed the runs of points that differ in one key alone: neighbouring numbers, or any two words."""
    for key in comparison.axes:
        groups: dict[str, list[Point]] = {}
        for point in comparison.points:
            groups.setdefault(str(_without(point.values, key)), []).append(point)
        for group in groups.values():
            group.sort(key=lambda point: order(point.values[key]))
            ordered = numeric([point.values[key] for point in group])
            for first, second in pairwise(group) if ordered else combinations(group, 2):
                step = f"{symbol(comparison.names[key])} {shown(first.values[key])} → {shown(second.values[key])}"
                others = {run.settings.get(SEED): run for run in second.runs}
                for run in first.runs:
                    if other := others.get(run.settings.get(SEED)):
                        yield Pair((first, second), (run, other), key, step, _without(first.values, key))


def _without(values: Settings, key: str) -> Settings:
    return {axis: value for axis, value in values.items() if axis != key}


def _alone(comparison: Comparison) -> Iterator[Pair]:
    for point in comparison.points:
        for run in point.runs:
            yield Pair((point, point), (run, run), ITERATION, "", point.values)


def _same_iteration(pair: Pair) -> list[tuple[Step, Step]]:
    others = {step.iteration: step for step in pair.runs[1].steps}
    return [(step, others[step.iteration]) for step in pair.runs[0].steps if step.iteration in others]


def win_rate_differences(comparison: Comparison) -> list[Difference]:
    """Compares all neighbours run by run, then over seeds; each kind is corrected for its own number."""
    by_prompt: list[Difference] = []
    for pair in _pairs(comparison):
        by_prompt += [_by_prompt(comparison, pair, *steps) for steps in _same_iteration(pair)]
    for pair in _alone(comparison):
        for one, another in pairwise(pair.runs[0].steps):
            if another.iteration == one.iteration + 1:
                by_prompt.append(_by_prompt(comparison, pair, one, another))
    return _corrected(by_prompt) + _corrected(_over_seeds(comparison) if comparison.seeded else [])


def _by_prompt(comparison: Comparison, pair: Pair, first: Step, second: Step) -> Difference:
    other = [part for part, value in first.yardstick.items() if second.yardstick[part] != value]
    result = None if other else paired(first.wins, second.wins, pair.runs[0].confidence)
    reason = f"other {', '.join(other)}" if other else "fewer than two prompts are common"
    where = pair.rest | ({SEED: pair.runs[0].settings.get(SEED)} if comparison.seeded else {})
    where |= {ITERATION: first.iteration} if pair.step else {}
    return _difference("", pair, first, second, described(comparison.names, where), "prompts", result, reason)


def _difference(
    name: str, pair: Pair, first: Any, second: Any, where: str, over: str, result: Paired | None, reason: str
) -> Difference:
    iterations = (first.iteration, second.iteration)
    step = pair.step or f"{ITERATION} {first.iteration} → {second.iteration}"
    reason = "" if result else f"not comparable: {reason}"
    return Difference(name, pair.points, iterations, pair.key, step, where, over, result, reason)


def _over_seeds(comparison: Comparison) -> list[Difference]:
    """Compares neighbours by the mean win rates of their common seeds: a pair of runs is one observation."""
    import pandas as pd

    groups: dict[str, list[tuple[Pair, Step, Step]]] = {}
    for pair in _pairs(comparison):
        for one, another in _same_iteration(pair):
            numbers = [point.number for point in pair.points]
            groups.setdefault(f"{numbers} {one.iteration}", []).append((pair, one, another))
    differences: list[Difference] = []
    for group in groups.values():
        pair, one, another = group[0]
        before, after = (pd.Series([steps[i].numbers[WIN] for _, *steps in group]) for i in (0, 1))
        comparable = all(first.yardstick == second.yardstick for _, first, second in group)
        result = paired(before, after, pair.runs[0].confidence) if comparable else None
        reason = "fewer than two seeds are common" if comparable else "other yardsticks"
        where = described(comparison.names, pair.rest | {ITERATION: one.iteration})
        differences.append(_difference("", pair, one, another, where, "seeds", result, reason))
    return differences


def benchmark_differences(comparison: Comparison) -> list[Difference]:
    """Compares neighbouring points at the last iteration that both have, and neighbouring iterations of each run."""
    differences: list[Difference] = []
    for pair in _pairs(comparison):
        run, other = pair.runs
        theirs = {(scores.benchmark, scores.iteration): scores for scores in other.benchmarks}
        common = [scores for scores in run.benchmarks if (scores.benchmark, scores.iteration) in theirs]
        for one in {scores.benchmark: scores for scores in common}.values():
            another = theirs[one.benchmark, one.iteration]
            if one.key != another.key:  # both may have the same one, such as the start policy's
                differences += _by_item(pair, one, another, f"{ITERATION} {one.iteration}, {run.name}")
    for pair in _alone(comparison):
        for one, another in pairwise(pair.runs[0].benchmarks):
            if one.benchmark == another.benchmark:
                differences += _by_item(pair, one, another, pair.runs[0].name)
    return _corrected(differences)


def _by_item(pair: Pair, first: Scores, second: Scores, where: str) -> Iterator[Difference]:
    """Compares two scores task by task: items of one task may gain what those of another lose."""
    if first.yardstick != second.yardstick:
        reason = "other questions, opponents, decoding, judge or scoring"
        yield _difference(first.benchmark, pair, first, second, where, "items", None, reason)
        return
    for task in dict.fromkeys([*first.items, *second.items]) or [""]:
        one, another = first.items.get(task), second.items.get(task)
        result = None if one is None or another is None else paired(one, another, pair.runs[0].confidence)
        name = f"{first.benchmark}: {task}" if task else first.benchmark
        yield _difference(name, pair, first, second, where, "items", result, "fewer than two items are common")
