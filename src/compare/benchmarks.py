"""Benchmarks of runs side by side, and whether neighbours differ on them: paired by item, corrected after Holm."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from src.compare.artifacts import Artifact, Numbers, clustered_values_of, fingerprint_of, numbers_of

if TYPE_CHECKING:
    from src.compare.gather import Folder
    from src.compare.points import Comparison, Point
    from src.compare.tables import Cell, Table

SCORES = re.compile(r"(base|it[1-9][0-9]{0,5})/([\w.-]+)/scores")
_OF_THE_POLICY = ("seed", "engine", "generator", "model", "content")
"""Of a stage's config: what two policies may differ in and be measured alike."""


class Scored(NamedTuple):
    """A benchmark of a policy."""

    name: str
    iteration: int
    """0: the start policy."""
    numbers: Numbers
    items: Numbers
    """item_id -> score; the mean of those that hang together, as the turns of a conversation do."""
    yardstick: str
    """Equal where all that measures is equal: questions, decoding, judge, scoring."""

    @property
    def shown(self) -> list[str]:
        """Numbers that have an interval."""
        return [key for key in self.numbers if {f"{key}_low", f"{key}_high"} <= self.numbers.keys()]


class Contrast(NamedTuple):
    """Of two neighbours on a benchmark, the second less the first: the mean score of an item."""

    benchmark: str
    points: tuple[Point, Point]
    step: str
    rest: str
    paired: Any
    """A `Paired`, or None."""
    reason: str
    holm: float | None = None

    @property
    def differs(self) -> bool:
        return self.holm is not None and self.holm < 0.05


def scored(artifacts: dict[str, Artifact], links: Path) -> list[Scored]:
    """By benchmark and iteration. Raises UserError for files that cannot be read."""
    found = []
    for name in artifacts:
        if match := SCORES.fullmatch(name):
            policy, benchmark = match[1], match[2]
            place, t = links / name, 0 if policy == "base" else int(policy[2:])
            yardstick = _yardstick(artifacts, policy, benchmark)
            items = clustered_values_of(place)
            found.append(Scored(benchmark, t, numbers_of(place), items, yardstick))
    return sorted(found, key=lambda one: (one.name, one.iteration))


def _yardstick(artifacts: dict[str, Artifact], policy: str, benchmark: str) -> str:
    own = {
        name.removeprefix(f"{policy}/"): fingerprint_of(artifact, _OF_THE_POLICY)
        for name, artifact in artifacts.items()
        if name.startswith(f"{policy}/{benchmark}/")
    }
    shared = {name: artifact.key for name, artifact in artifacts.items() if name.startswith(f"{benchmark}/")}
    return str(sorted((own | shared).items()))


def contrasts(found: Comparison) -> list[Contrast]:
    """Neighbouring points at the last iteration that both have, and neighbouring iterations of each run."""
    from src.compare.significance import holm

    tested = list(_all(found))
    corrected = iter(holm([one.paired.p for one in tested if one.paired]))
    return [one._replace(holm=next(corrected)) if one.paired else one for one in tested]


def _all(found: Comparison) -> Iterator[Contrast]:
    from src.compare.significance import neighbours, same_seed, step_of

    for key, first, second in neighbours(found):
        for run, other in same_seed(first, second):
            for one, another in _last_common(run, other):
                yield _contrast(found, (first, second), step_of(found, key, first, second), (one, another), run)
    for point in found.points:
        for run in point.runs:
            for one, another in pairwise(run.benchmarks):
                if one.name == another.name:
                    name = f"iteration {one.iteration} → {another.iteration}"
                    yield _contrast(found, (point, point), name, (one, another), run)


def _last_common(run: Folder, other: Folder) -> Iterator[tuple[Scored, Scored]]:
    theirs = {(one.name, one.iteration): one for one in other.benchmarks}
    last = {one.name: (one, theirs[key]) for one in run.benchmarks if (key := (one.name, one.iteration)) in theirs}
    yield from last.values()


def _contrast(
    found: Comparison, points: tuple[Point, Point], step: str, pair: tuple[Scored, Scored], run: Folder
) -> Contrast:
    from src.compare.significance import paired

    first, second = pair
    rest = run.name if points[0] is points[1] else f"iteration {first.iteration}, {run.name}"
    if first.yardstick != second.yardstick:
        reason = "not comparable: other questions, decoding, judge or scoring"
        return Contrast(first.name, points, step, rest, None, reason)
    result = paired(first.items, second.items, run.confidence)
    return Contrast(first.name, points, step, rest, result, "" if result else "fewer than two items are common")


def rows_of(found: Comparison) -> list[tuple[Point, Folder, Scored]]:
    return [(point, run, one) for point in found.points for run in point.runs for one in run.benchmarks]


def results_table(found: Comparison) -> Table:
    """A row a run, iteration and benchmark; of each number its interval."""
    from src.compare.tables import Cell, Table, number

    rows = [
        (point, [number(point.number, 0), Cell(run.name), Cell(one.name), number(one.iteration, 0),
                 Cell(key.replace("_", " ")), _told(one, key), number(one.numbers.get("items"), 0)])
        for point, run, one in rows_of(found)
        for key in one.shown
    ]  # fmt: skip
    heads = ["point", "run", "benchmark", "iteration", "measure", "value", "items"]
    return Table(heads, [cells for _, cells in rows], [point.number for point, _ in rows])


def contrasts_table(contrasts: Sequence[Contrast]) -> Table:
    from src.compare.tables import Cell, Table, probability

    rows = []
    for one in contrasts:
        told, p, corrected, items = Cell("–"), Cell("–"), Cell("–"), Cell("–")
        if one.paired:
            told = Cell(f"{one.paired.mean:+.4g} [{one.paired.low:+.4g}, {one.paired.high:+.4g}]", one.paired.mean)
            p, corrected = probability(one.paired.p), probability(one.holm)
            items = Cell(str(one.paired.number), one.paired.number)
        verdict = "differs" if one.differs else "no difference shown" if one.paired else one.reason
        rows.append([Cell(one.benchmark), Cell(one.step), Cell(one.rest), told, p, corrected, items, Cell(verdict)])
    heads = [
        "benchmark",
        "from → to",
        "where",
        "difference of an item's score",
        "p",
        "p, corrected",
        "items",
        "verdict",
    ]
    return Table(heads, rows, [one.points[1].number for one in contrasts])


def _told(one: Scored, key: str) -> Cell:
    from src.compare.tables import Cell

    low, high = one.numbers[f"{key}_low"], one.numbers[f"{key}_high"]
    return Cell(f"{one.numbers[key]:.4g} [{low:.4g}, {high:.4g}]", one.numbers[key])
