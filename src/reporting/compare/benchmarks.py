"""Benchmarks of runs side by side, and whether neighbours differ on them: paired by item, corrected after Holm."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from src.evaluation.benchmark import SCORES
from src.reporting.compare.artifacts import Artifact, Numbers, fingerprint_of, numbers_of, scores_of

if TYPE_CHECKING:
    from src.reporting.compare.gather import Folder
    from src.reporting.compare.points import Comparison, Point
    from src.reporting.compare.tables import Cell, Table

NOTE = (
    "Differences are of the mean score of an item, whose unit may be another than the tables' (0 to 1 where those are "
    "percentages), paired by item, task by task where a benchmark has several; between neighbours at the last "
    "iteration that both have, and between iterations of a run. p is of Student's t test, or of the "
    "sign test where all differences are the same, corrected after Holm for all of them. A length-controlled win rate, "
    "which is fitted to all items at once, has no such test: its items are compared on the preference as judged."
)
SCORED = re.compile(rf"(base|it[1-9][0-9]{{0,5}})/([\w.-]+)/{SCORES}")
TRAINED = re.compile(r"it\d+/policy")
OF_A_POLICY = re.compile(r"(base|null|it\d+)/")
LENGTHS = re.compile(r"avg_length|longer_wins|(?:(?:base|it\d+)_)?(?:tokens|characters)")
"""Of answers, of all or of a policy's, and whether longer ones win: win rates are not to be read without."""
MIRRORED = re.compile(r"^(.+)_over_(.+)$")
_OF_THE_POLICY = ("seed", "engine", "generator", "model", "content")
"""Of a stage's config: what two policies may differ in and be measured alike."""


class Scored(NamedTuple):
    """A benchmark of a policy."""

    name: str
    iteration: int
    """0: the start policy."""
    numbers: Numbers
    items: dict[str, Numbers]
    """Column, as a leaderboard's tasks are (else ""), -> item_id -> score; the mean of those that hang together, as the
    turns of a conversation do."""
    key: str
    """Of the artifact."""
    yardstick: str
    """Equal where all that measures is equal: questions, opponents, decoding, judge, scoring."""

    @property
    def shown(self) -> list[str]:
        """Numbers that have an interval, and mean lengths. Of `a_over_b` and `b_over_a`, whose sum is 1, the last."""
        known = [key for key in self.numbers if LENGTHS.fullmatch(key) or self.has_interval(key)]
        return [key for i, key in enumerate(known) if MIRRORED.sub(r"\2_over_\1", key) not in known[i + 1 :]]

    def has_interval(self, key: str) -> bool:
        return {f"{key}_low", f"{key}_high"} <= self.numbers.keys()


class Contrast(NamedTuple):
    """Of two neighbours on a benchmark, the second less the first: the mean score of an item."""

    benchmark: str
    """With its column, where it has some."""
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
        if match := SCORED.fullmatch(name):
            policy, benchmark = match[1], match[2]
            place, t = links / name, 0 if policy == "base" else int(policy[2:])
            yardstick = _yardstick(artifacts, policy, benchmark)
            items = scores_of(place)
            found.append(Scored(benchmark, t, numbers_of(place), items, artifacts[name].key, yardstick))
    return sorted(found, key=lambda one: (one.name, one.iteration))


def _yardstick(artifacts: dict[str, Artifact], policy: str, benchmark: str) -> str:
    own = {
        name.removeprefix(f"{policy}/"): fingerprint_of(artifact, _OF_THE_POLICY)
        for name, artifact in artifacts.items()
        if name.startswith(f"{policy}/{benchmark}/")
    }
    shared = {name: artifact.key for name, artifact in artifacts.items() if name.startswith(f"{benchmark}/")}
    return str(sorted((_read(artifacts, policy, benchmark) | own | shared).items()))


def _read(artifacts: dict[str, Artifact], policy: str, benchmark: str) -> dict[str, str]:
    """What the scores are made from beside the policy: held-out prompts and answers, an opponent, a ranker's models.

    Not which policies the run trained: they are what differs.
    """
    by_place = {(one.kind, one.key): one for one in artifacts.values()}
    found, waiting = dict[str, str](), [artifacts[f"{policy}/{benchmark}/{SCORES}"]]
    while waiting:
        one = waiting.pop()
        name = one.name.removeprefix(f"{policy}/")
        if name in found or name == "policy" or TRAINED.fullmatch(one.name):
            continue
        of_a_policy = one.name != "base/policy" and OF_A_POLICY.match(one.name)
        found[name] = fingerprint_of(one, _OF_THE_POLICY) if of_a_policy else one.key
        places = ((parent["kind"], parent["key"]) for parent in one.record.get("inputs", []))
        waiting += [by_place[place] for place in places if place in by_place]
    return found


def contrasts(found: Comparison) -> list[Contrast]:
    """Neighbouring points at the last iteration that both have, and neighbouring iterations of each run."""
    from src.reporting.compare.significance import holm

    tested = list(_all(found))
    corrected = iter(holm([one.paired.p for one in tested if one.paired]))
    return [one._replace(holm=next(corrected)) if one.paired else one for one in tested]


def _all(found: Comparison) -> Iterator[Contrast]:
    from src.reporting.compare.significance import neighbours, same_seed, step_of

    for key, first, second in neighbours(found):
        for run, other in same_seed(first, second):
            for one, another in _last_common(run, other):
                yield from _contrasts((first, second), step_of(found, key, first, second), (one, another), run)
    for point in found.points:
        for run in point.runs:
            for one, another in pairwise(run.benchmarks):
                if one.name == another.name:
                    name = f"iteration {one.iteration} → {another.iteration}"
                    yield from _contrasts((point, point), name, (one, another), run)


def _last_common(run: Folder, other: Folder) -> Iterator[tuple[Scored, Scored]]:
    """But where both have one and the same, such as the start policy's."""
    theirs = {(one.name, one.iteration): one for one in other.benchmarks}
    last = {one.name: (one, theirs[key]) for one in run.benchmarks if (key := (one.name, one.iteration)) in theirs}
    yield from (pair for pair in last.values() if pair[0].key != pair[1].key)


def _contrasts(points: tuple[Point, Point], step: str, pair: tuple[Scored, Scored], run: Folder) -> Iterator[Contrast]:
    """One a column: items of one task may gain what those of another lose."""
    from src.reporting.compare.significance import paired

    first, second = pair
    rest = run.name if points[0] is points[1] else f"iteration {first.iteration}, {run.name}"
    if first.yardstick != second.yardstick:
        reason = "not comparable: other questions, opponents, decoding, judge or scoring"
        yield Contrast(first.name, points, step, rest, None, reason)
        return
    for column in dict.fromkeys([*first.items, *second.items]) or [""]:
        result = paired(first.items.get(column, {}), second.items.get(column, {}), run.confidence)
        name = f"{first.name}: {column}" if column else first.name
        yield Contrast(name, points, step, rest, result, "" if result else "fewer than two items are common")


def rows_of(found: Comparison) -> list[tuple[Point, Folder, Scored]]:
    return [(point, run, one) for point in found.points for run in point.runs for one in run.benchmarks]


def headline(found: Comparison) -> dict[str, list[list[str]]]:
    """Benchmark -> of each number that is shown of any run its key, and those of its interval where it has one."""
    keys: dict[str, dict[str, list[str]]] = {}
    for _, _, one in rows_of(found):
        for key in one.shown:
            ends = ("", "_low", "_high") if one.has_interval(key) else ("",)
            keys.setdefault(one.name, {})[key] = [key + end for end in ends]
    return {name: list(own.values()) for name, own in sorted(keys.items())}


def results_table(found: Comparison) -> Table:
    """A row a run, iteration and number of a benchmark that is shown, with its interval."""
    from src.reporting.compare.tables import Cell, Table, number

    rows = [
        (point, [number(point.number, 0), Cell(run.name), Cell(one.name), number(one.iteration, 0),
                 Cell(key.replace("_", " ")), _told(one, key), number(one.numbers.get("items"), 0)])
        for point, run, one in rows_of(found)
        for key in one.shown
    ]  # fmt: skip
    heads = ["point", "run", "benchmark", "iteration", "measure", "value", "items"]
    return Table(heads, [cells for _, cells in rows], [point.number for point, _ in rows])


def contrasts_table(contrasts: Sequence[Contrast]) -> Table:
    from src.reporting.compare.tables import Cell, Table, probability

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
    from src.reporting.compare.tables import Cell

    value = one.numbers[key]
    if not one.has_interval(key):
        return Cell(f"{value:.4g}", value)
    low, high = one.numbers[f"{key}_low"], one.numbers[f"{key}_high"]
    return Cell(f"{value:.4g} [{low:.4g}, {high:.4g}]", value)
