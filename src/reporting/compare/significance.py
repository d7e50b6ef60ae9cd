"""Whether neighbours differ: paired by prompt, and by seed where there are several; each has Holm's correction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

from src.reporting.compare.gather import WIN, Folder, Step
from src.reporting.compare.points import Comparison, Point, Values
from src.reporting.compare.varied import SEED, Value, numeric, order, shown, sign, told

ITERATION = "iteration"
LEAST = 2
"""Prompts, or seeds, of which a difference can be tested."""


class Paired(NamedTuple):
    """Mean of differences, its Student-t interval and two-sided p value.

    Equal differences have no variance that a t test could go by: the interval is a point, and p is the sign test's.
    """

    mean: float
    low: float
    high: float
    p: float
    number: int
    """Of prompts, or of seeds."""


class Difference(NamedTuple):
    """Of two neighbours, the second less the first."""

    points: tuple[Point, Point]
    iterations: tuple[int, int]
    key: str
    """In which they differ: an axis, or `iteration`."""
    step: str
    """`η 100 → 1000`."""
    rest: str
    """What they share."""
    over: str
    """`prompts` or `seeds`."""
    paired: Paired | None
    reason: str
    """Why there is no number."""
    holm: float | None = None
    """p, corrected for the number of comparisons."""

    @property
    def differs(self) -> bool:
        """At the 5% level, after the correction."""
        return self.holm is not None and self.holm < 0.05


def interval(values: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Mean and Student-t interval of independent values; a point where they are all equal."""
    from scipy import stats

    mean = float(np.mean(values))
    half = float(np.std(values, ddof=1) / np.sqrt(len(values)) * stats.t.ppf((1 + confidence) / 2, len(values) - 1))
    return mean, mean - half, mean + half


def paired(first: dict[str, float], second: dict[str, float], confidence: float) -> Paired | None:
    """Of second less first, where both have a value; None where fewer than two are common."""
    from scipy import stats

    common = sorted(first.keys() & second.keys())
    if len(common) < LEAST:
        return None
    values = np.array([second[key] - first[key] for key in common])
    mean, low, high = interval(values.tolist(), confidence)
    rounding = 1e-12 * max(abs(own[key]) for own in (first, second) for key in common)
    if np.ptp(values) <= rounding:
        return Paired(mean, mean, mean, 1.0 if abs(mean) <= rounding else 2.0 ** (1 - len(common)), len(common))
    spread = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return Paired(mean, low, high, float(2 * stats.t.sf(abs(mean) / spread, len(values) - 1)), len(common))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected so that calling those below alpha different errs in one of all with probability alpha at most."""
    corrected = [1.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = worst
    return corrected


def differences(found: Comparison) -> list[Difference]:
    """All neighbours run by run, then over seeds; each kind is corrected for its own number."""
    apart = [*_between_points(found), *_between_iterations(found)]
    return _corrected(apart) + _corrected(_over_seeds(found) if found.seeded else [])


def _corrected(found: list[Difference]) -> list[Difference]:
    known = [difference for difference in found if difference.paired]
    corrected = iter(holm([difference.paired.p for difference in known if difference.paired]))
    return [difference._replace(holm=next(corrected)) if difference.paired else difference for difference in found]


def neighbours(found: Comparison) -> Iterator[tuple[str, Point, Point]]:
    """Points that differ in one key alone: numbers next to each other, words each with each."""
    for key in found.axes:
        groups: dict[str, list[Point]] = {}
        for point in found.points:
            groups.setdefault(str({axis: value for axis, value in point.values.items() if axis != key}), []).append(
                point
            )
        for group in groups.values():
            group.sort(key=lambda point: order(point.values[key]))
            ordered = numeric([point.values[key] for point in group])
            for first, second in pairwise(group) if ordered else combinations(group, 2):
                yield key, first, second


def _between_points(found: Comparison) -> Iterator[Difference]:
    for key, first, second in neighbours(found):
        for run, other in same_seed(first, second):
            for step, other_step in _same_iteration(run, other):
                t = step.iteration
                rest = told(found.names, _without(first.values, key) | _seed(found, run) | {ITERATION: t})
                yield _difference(
                    (first, second), (step, other_step), key, step_of(found, key, first, second), rest, run.confidence
                )


def _between_iterations(found: Comparison) -> Iterator[Difference]:
    for point in found.points:
        for run in point.runs:
            for step, after in pairwise(run.steps):
                if after.iteration == step.iteration + 1:
                    name = f"iteration {step.iteration} → {after.iteration}"
                    rest = told(found.names, point.values | _seed(found, run))
                    yield _difference((point, point), (step, after), ITERATION, name, rest, run.confidence)


def _difference(
    points: tuple[Point, Point], steps: tuple[Step, Step], key: str, name: str, rest: str, confidence: float
) -> Difference:
    first, second = steps
    other = [part for part, identity in first.yardstick.items() if second.yardstick[part] != identity]
    iterations = (first.iteration, second.iteration)
    if other:
        return Difference(
            points, iterations, key, name, rest, "prompts", None, f"not comparable: other {', '.join(other)}"
        )
    found = paired(first.wins, second.wins, confidence)
    reason = "" if found else "not comparable: fewer than two prompts are common"
    return Difference(points, iterations, key, name, rest, "prompts", found, reason)


def _over_seeds(found: Comparison) -> list[Difference]:
    """Neighbours by the mean win rates of their common seeds: a pair of runs is one observation."""
    differences: list[Difference] = []
    for key, first, second in neighbours(found):
        pairs = [pair for runs in same_seed(first, second) for pair in _same_iteration(*runs)]
        for t in sorted({step.iteration for step, _ in pairs}):
            steps = [(step, other) for step, other in pairs if step.iteration == t]
            rest = told(found.names, _without(first.values, key) | {ITERATION: t})
            before = {str(i): step.numbers[WIN] for i, (step, _) in enumerate(steps)}
            after = {str(i): other.numbers[WIN] for i, (_, other) in enumerate(steps)}
            comparable = all(step.yardstick == other.yardstick for step, other in steps)
            result = paired(before, after, first.runs[0].confidence) if comparable else None
            reason = "" if result else "fewer than two seeds are common" if comparable else "not comparable"
            name = step_of(found, key, first, second)
            differences.append(Difference((first, second), (t, t), key, name, rest, "seeds", result, reason))
    return differences


def same_seed(first: Point, second: Point) -> list[tuple[Folder, Folder]]:
    others = {run.settings.get(SEED): run for run in second.runs}
    return [(run, others[seed]) for run in first.runs if (seed := run.settings.get(SEED)) in others]


def _same_iteration(run: Folder, other: Folder) -> list[tuple[Step, Step]]:
    others = {step.iteration: step for step in other.steps}
    return [(step, others[step.iteration]) for step in run.steps if step.iteration in others]


def _without(values: Values, key: str) -> Values:
    return {axis: value for axis, value in values.items() if axis != key}


def _seed(found: Comparison, run: Folder) -> Values:
    return {SEED: run.settings.get(SEED)} if found.seeded else {}


def step_of(found: Comparison, key: str, first: Point, second: Point) -> str:
    values: list[Value] = [first.values[key], second.values[key]]
    return f"{sign(found.names[key])} {shown(values[0])} → {shown(values[1])}"
