"""What a comparison says: its sentences, and the same parts as index.html and compare.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd

from src.reporting.compare import tables
from src.reporting.compare.plots import Section
from src.reporting.compare.points import Comparison, Estimate, Point
from src.reporting.compare.read import RunFolder, Step
from src.reporting.compare.settings import COPY, legible, short_names, shown, symbol
from src.reporting.compare.significance import ITERATION, Difference
from src.reporting.compare.tables import Table

MOST_NAMED = 4


class Part(NamedTuple):
    """A section of the page and of compare.md; page.html.jinja has what is said of each."""

    title: str
    table: Table
    note: str = ""
    best: int | None = None
    """The row of the table that is set in bold."""

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-").rstrip("?")


def render(
    comparison: Comparison,
    win_rates: Sequence[Difference],
    benchmarks: Sequence[Difference],
    plots: Sequence[Section],
) -> dict[str, str]:
    """Returns the texts of index.html and compare.md, in which all text that comes from runs is escaped."""
    results = [
        Part("Results", tables.results(comparison), _about_keys(comparison), _best_row(comparison)),
        Part("Could not be read", pd.DataFrame(comparison.damaged, columns=["run", "reason"])),
        Part("Over seeds", tables.over_seeds(comparison)),
    ]
    rest = [
        Part("Do neighbours differ?", tables.differences(win_rates)),
        Part("Benchmarks", tables.benchmarks(comparison)),
        Part("Do neighbours differ on benchmarks?", tables.differences(benchmarks)),
        Part("Costs", tables.cost_table(comparison), tables.cost_sentence(comparison)),
        Part("What was shared", tables.shared(comparison)),
    ]
    context = {
        "title": comparison.title,
        "headline": headline(comparison, win_rates),
        "cautions": cautions(comparison),
        "results": [part for part in results if len(part.table)],
        "rest": [part for part in rest if len(part.table)],
        "plots": plots,
        "runs": [(run, _lineage(run)) for run in comparison.runs],
        "confidence": " or ".join(f"{value:.0%}" for value in sorted({run.confidence for run in comparison.runs})),
    }
    texts: dict[str, str] = {}
    for name, escapes in (("index.html", True), ("compare.md", False)):  # Markdown is escaped by `literal`
        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        environment = jinja2.Environment(
            loader=loader, autoescape=escapes, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters |= {"literal": tables.literal, "markdown": tables.as_markdown, "of_words": tables.of_words}
        texts[name] = legible(environment.get_template(f"{name}.jinja").render(context))
    return texts


def _about_keys(comparison: Comparison) -> str:
    """Says which keys are no axes of their own, and what `copy` is."""
    notes = [
        f"{legible(key)} varies only together with {comparison.names[axis]}: what each does cannot be told."
        for key, axis in comparison.varied.bound.items()
    ]
    return " ".join([*notes, *["Runs of equal settings are told apart by “copy”."] * (COPY in comparison.varied.axes)])


def _best_row(comparison: Comparison) -> int | None:
    if comparison.seeded or not comparison.yardsticks:
        return None
    point, t = best(comparison.yardsticks[0])
    return next(i for i, row in enumerate(comparison.rows) if row.point is point and row.iteration == t)


def _lineage(run: RunFolder) -> Table:
    """Says which artifact of a run was made from which."""
    names = {artifact.id: artifact.name for artifact in reversed(run.artifacts.values())}
    rows = []
    for artifact in run.artifacts.values():
        made_from = ", ".join(dict.fromkeys(names.get(parent, parent) for parent in artifact.parents)) or "–"
        commit, dirty, _ = artifact.record.commit.partition("+dirty")
        rows.append([artifact.name, artifact.id, made_from, f"{artifact.record.seconds:.1f}", commit[:9] + dirty])
    return pd.DataFrame(rows, columns=["artifact", "key", "made from", "seconds", "commit"])


# Sentences -----------------------------------------------------------------------------------------------------------


def best(points: Sequence[Point]) -> tuple[Point, int]:
    """Returns the point and iteration with the highest win rate; of equal ones the first."""
    point = max(points, key=lambda point: point.best[0])
    return point, point.best[1]


def headline(comparison: Comparison, differences: Sequence[Difference]) -> list[str]:
    """Writes a sentence or two for each set of points that can be compared; the first is the most numerous."""
    groups = comparison.yardsticks
    sentences = [_about_best(comparison, points, differences) for points in groups]
    several = f"The runs are measured in {len(groups)} ways, whose win rates cannot be compared with each other."
    return [several, *sentences] if len(groups) > 1 else sentences


def _about_best(comparison: Comparison, points: list[Point], differences: Sequence[Difference]) -> str:
    point, t = best(points)
    win = point.win(t)
    assert win
    verdict = "beats" if win.low > 0.5 else "does not beat"
    among = f" of {len(points)} comparable points" if len(comparison.yardsticks) > 1 else ""
    name = comparison.name(point) if point.values else "The run"
    equal = sum(other.win(t) == win for other in points if other is not point)
    name += "" if not equal else " (as is another)" if equal == 1 else f" (as are {equal} others)"
    sentence = f"Best{among}: {name}, iteration {t}, {verdict} the base: win rate {_written(win)}."
    return f"{sentence} {_against_neighbours(point, t, differences)}".strip()


def _written(win: Estimate) -> str:
    over = "held-out prompts" if win.over == "prompts" else win.over
    return f"{win.mean:.3f} [{win.low:.3f}, {win.high:.3f}] over {win.number} {over}"


def _against_neighbours(point: Point, t: int, differences: Sequence[Difference]) -> str:
    """Compares a point with those beside it at its iteration: by seeds where it has several, else by prompts."""
    kind = "seeds" if len(point.runs) > 1 else "prompts"
    beside = [d for d in differences if d.over == kind and d.key != ITERATION and point in d.points]
    tested = [d for d in beside if d.paired and t in d.iterations]
    if not tested:
        return ""
    differs = [d.step for d in tested if d.differs]
    names = f" ({', '.join(differs[:MOST_NAMED])}{', …' * (len(differs) > MOST_NAMED)})" if differs else ""
    return (
        f"It differs from {len(differs)} of its {len(tested)} neighbours{names} at the 5% level, paired by "
        f"{kind[:-1]} and corrected for all comparisons by {kind[:-1]}."
    )


def warnings(comparison: Comparison) -> list[str]:
    """Says what a reader must know before believing a number."""
    runs, points = comparison.runs, len(comparison.points)
    rehearsed = sum(run.rehearsed for run in runs)
    waiting = sum(run.state != "finished" for run in runs)
    sentences = {
        f"The best of {points} points is partly luck: expect it to be lower with other seeds.": points > 1,
        (null := _about_nulls(comparison)): bool(null),
        f"{rehearsed} of {len(runs)} runs are rehearsals with random weights: their numbers mean nothing.": rehearsed,
        f"{waiting} of {len(runs)} runs are unfinished: what they have is shown.": waiting,
    }
    return [sentence for sentence, holds in sentences.items() if holds]


def _about_nulls(comparison: Comparison) -> str:
    """Counts the nulls whose interval misses a half. Runs of a sweep share a null, which is then one measurement."""
    nulls: dict[str, list[RunFolder]] = {}
    missed: set[str] = set()
    for run in comparison.runs:
        for step in run.steps:
            if {"null_win_low", "null_win_high"} <= step.numbers.keys():
                null = _null(run, step)
                nulls.setdefault(null, []).append(run)
                if not step.numbers["null_win_low"] <= 0.5 <= step.numbers["null_win_high"]:
                    missed.add(null)
    runs = {run.path: run for null in missed for run in nulls[null]}
    levels = sorted({run.confidence for run in runs.values()})
    sure, unsure = (" or ".join(f"{100 * level:.3g}%" for level in each) for each in (levels, [1 - x for x in levels]))
    shared = f", shared by {len(runs)} runs," if len(runs) > len(missed) else ""
    does = "does" if len(missed) == 1 else "do"
    counts = f"{len(missed)} of {len(nulls)} nulls (the base against itself){shared} {does} not contain 0.5"
    return f"{counts}; by chance {unsure} of {sure} intervals do not." if missed else ""


def _null(run: RunFolder, step: Step) -> str:
    """Identifies a measurement: the answers of the base, those of other seeds, and what compares them."""
    answers = [run.artifacts.get(f"{name}/answers") for name in ("base", "null")]
    keys = [artifact.key if artifact else str(run.path) for artifact in answers]
    return " ".join([*keys, step.yardstick["ranker"], step.yardstick["estimator"]])


def cautions(comparison: Comparison) -> list[str]:
    """Says what a reader must know, and what all runs have in common of the settings that are usual to name."""
    damaged, runs = len(comparison.damaged), len(comparison.runs)
    left_out = f"{damaged} of {runs + damaged} runs could not be read and {'is' if damaged == 1 else 'are'} left out."
    same = comparison.varied.same
    names = short_names(list(same))
    usual = ", ".join(f"{symbol(names[key])} {shown(same[key])}" for key in tables.ALWAYS if key in same)
    return [
        *warnings(comparison),
        *comparison.not_begun,
        *([left_out] if damaged else []),
        f"{runs} runs, {len(comparison.points)} points. The same in all: {usual or 'nothing that is usual'}.",
    ]
