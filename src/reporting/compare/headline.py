"""What a comparison says in sentences: the best point, what it differs from, and what to be wary of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from src.reporting.compare.gather import Damaged, Folder, Step
from src.reporting.compare.points import Comparison, Estimate, Point
from src.reporting.compare.significance import ITERATION, Difference

MOST_NAMED = 4
_NULL = {"null_win_low", "null_win_high"}


class LeftOut(NamedTuple):
    """What was asked for and is no part of a comparison."""

    damaged: Sequence[Damaged] = ()
    not_begun: Sequence[str] = ()
    """A sentence each."""


NOTHING = LeftOut()


def headline(found: Comparison, differences: Sequence[Difference]) -> list[str]:
    """A sentence or two for each set of points that can be compared; the first is the most numerous."""
    several = len(found.yardsticks) > 1
    told = [_best(found, points, differences, several) for points in found.yardsticks]
    if several:
        told.insert(
            0, f"The runs are measured in {len(told)} ways, whose win rates cannot be compared with each other."
        )
    return told


def _best(found: Comparison, points: list[Point], differences: Sequence[Difference], several: bool) -> str:
    point, t = found.best(points)
    win = point.win(t)
    assert win
    verdict = "beats" if win.low > 0.5 else "does not beat"
    among = f" of {len(points)} comparable points" if several else ""
    name = found.name(point) if point.values else "The run"
    equal = sum(other.win(t) == win for other in points if other is not point)
    name += f" (as are {equal} others)" * (equal > 1) + " (as is another)" * (equal == 1)
    first = f"Best{among}: {name}, iteration {t}, {verdict} the base: win rate {written(win)} over {count(win)}."
    return f"{first} {_neighbours(point, t, differences)}".strip()


def _neighbours(point: Point, t: int, differences: Sequence[Difference]) -> str:
    """Against those beside it at its iteration: by seeds where it has several, else by prompts."""
    kind = "seeds" if len(point.runs) > 1 else "prompts"
    own = [
        d for d in differences if d.over == kind and (d.key != ITERATION and point in d.points and t in d.iterations)
    ]
    tested = [d for d in own if d.paired]
    if not tested:
        return ""
    differs = [d for d in tested if d.differs]
    names = ", ".join(d.step for d in differs[:MOST_NAMED]) + ", …" * (len(differs) > MOST_NAMED)
    shown = f" ({names})" if differs else ""
    return (
        f"It differs from {len(differs)} of its {len(tested)} neighbours{shown} at the 5% level, paired by "
        f"{kind[:-1]} and corrected for all comparisons by {kind[:-1]}."
    )


def warnings(found: Comparison) -> list[str]:
    """What a reader must know before believing a number."""
    told: list[str] = []
    if len(found.points) > 1:
        told.append(f"The best of {len(found.points)} points is partly luck: expect it to be lower with other seeds.")
    told += _null_warning(found)
    rehearsed = sum(run.rehearsed for run in found.runs)
    if rehearsed:
        told.append(
            f"{rehearsed} of {len(found.runs)} runs are rehearsals with random weights: their numbers mean nothing."
        )
    waiting = [run for run in found.runs if run.state != "finished"]
    if waiting:
        told.append(f"{len(waiting)} of {len(found.runs)} runs are unfinished: what they have is shown.")
    return told


def _null_warning(found: Comparison) -> list[str]:
    """Runs of a sweep share the answers that it is measured with, and then it is one measurement."""
    nulls: dict[str, list[Folder]] = {}
    unsound: dict[str, list[Folder]] = {}
    measured = [(run, step) for run in found.runs for step in run.steps if step.numbers.keys() >= _NULL]
    for run, step in measured:
        nulls.setdefault(_null(run, step), []).append(run)
        if not step.numbers["null_win_low"] <= 0.5 <= step.numbers["null_win_high"]:
            unsound.setdefault(_null(run, step), []).append(run)
    if not unsound:
        return []
    runs = {id(run): run for null in unsound for run in nulls[null]}
    levels = sorted({run.confidence for run in runs.values()})
    intervals, missed = (" or ".join(f"{100 * x:.3g}%" for x in each) for each in (levels, [1 - x for x in levels]))
    does, shared = "does" if len(unsound) == 1 else "do", f", shared by {len(runs)} runs," * (len(runs) > len(unsound))
    return [
        f"{len(unsound)} of {len(nulls)} nulls (the base against itself){shared} {does} not contain 0.5; "
        f"by chance {missed} of {intervals} intervals do not."
    ]


def _null(run: Folder, step: Step) -> str:
    """Which measurement it is: the answers of the base, those of other seeds, and what compares them."""
    answers = [run.artifacts.get(f"{name}/answers") for name in ("base", "null")]
    keys = [str(run.path) if artifact is None else artifact.key for artifact in answers]
    return " ".join([*keys, step.yardstick["ranker"], step.yardstick["estimator"]])


def written(win: Estimate) -> str:
    return f"{win.mean:.3f} [{win.low:.3f}, {win.high:.3f}]"


def count(win: Estimate) -> str:
    return f"{win.number} held-out prompts" if win.over == "prompts" else f"{win.number} seeds"
