"""What a comparison says: its sentences, and the same parts as index.html and compare.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from src.reporting.compare import tables
from src.reporting.compare.plots import Section
from src.reporting.compare.points import Comparison, Point, legible, shown, symbol
from src.reporting.compare.read import USUAL, Table
from src.reporting.compare.significance import ITERATION, Difference
from src.reporting.tables import literal


class Part(NamedTuple):
    """A section of the page and of compare.md; index.html.jinja has what is said of each."""

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
    """Return the texts of index.html and compare.md, in which all text that comes from runs is escaped."""
    bound = comparison.varied.bound.items()
    notes = [
        f"{key} varies only together with {comparison.names[axis]}: what each does cannot be told."
        for key, axis in bound
    ]
    row = None
    if comparison.yardsticks:
        point, t = best(comparison.yardsticks[0])
        measured = [(each.point, each.step.iteration if each.step else 0) for each in comparison.rows]
        row = None if comparison.seeded else measured.index((point, t))
    results = [
        Part("Results", tables.results(comparison), " ".join(notes), row),
        Part("Over seeds", tables.over_seeds(comparison)),
    ]
    rest = [
        Part("Do neighbours differ?", tables.differences(win_rates)),
        Part("Benchmarks", tables.benchmarks(comparison)),
        Part("Do neighbours differ on benchmarks?", tables.differences(benchmarks)),
        Part("Costs", tables.cost_table(comparison), tables.cost_sentence(comparison)),
    ]
    context = {
        "title": comparison.title,
        "headline": headline(comparison, win_rates),
        "cautions": cautions(comparison),
        "results": [part for part in results if len(part.table)],
        "rest": [part for part in rest if len(part.table)],
        "plots": plots,
        "runs": comparison.runs,
        "lineage": tables.lineage(comparison),
        "confidence": " or ".join(f"{value:.0%}" for value in sorted({run.confidence for run in comparison.runs})),
    }
    texts: dict[str, str] = {}
    for name, escapes in (("index.html", True), ("compare.md", False)):  # Markdown is escaped by `literal`
        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        environment = jinja2.Environment(
            loader=loader, autoescape=escapes, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters |= {"literal": literal, "markdown": tables.as_markdown, "of_words": tables.of_words}
        texts[name] = legible(environment.get_template(f"{name}.jinja").render(context))
    return texts


# Sentences -----------------------------------------------------------------------------------------------------------


def best(points: Sequence[Point]) -> tuple[Point, int]:
    """Return the point and iteration with the highest win rate; of equal ones the first."""
    point = max(points, key=lambda point: point.best[0])
    return point, point.best[1]


def headline(comparison: Comparison, differences: Sequence[Difference]) -> list[str]:
    """Write a sentence or two for each set of points that can be compared; the first is the most numerous."""
    groups, sentences = comparison.yardsticks, list[str]()
    if len(groups) > 1:
        sentences.append(f"The runs are measured in {len(groups)} ways, whose win rates cannot be compared.")
    for points in groups:
        point, t = best(points)
        win = point.win(t)
        assert win
        verdict = "beats" if win.low > 0.5 else "does not beat"
        among = f" of {len(points)} comparable points" if len(groups) > 1 else ""
        name = comparison.name(point) if point.values else "the run"
        sentence = f"Best{among}: {name}, iteration {t}, {verdict} the base: win rate {win.mean:.3f} "
        over = "seeds" if win.over == "seeds" else "held-out prompts"
        sentence += f"[{win.low:.3f}, {win.high:.3f}] over {win.number} {over}."
        kind = "seeds" if len(point.runs) > 1 else "prompts"
        beside = [d for d in differences if d.over == kind and d.key != ITERATION and point in d.points]
        if tested := [d for d in beside if d.paired and t in d.iterations]:
            differs = [d.step for d in tested if d.differs]
            sentence += f" It differs from {len(differs)} of its {len(tested)} neighbours"
            sentence += f" ({', '.join(differs)})" if differs else ""
            sentence += f" at the 5% level, paired by {kind[:-1]} and corrected for all comparisons by {kind[:-1]}."
        sentences.append(sentence)
    return sentences


def cautions(comparison: Comparison) -> list[str]:
    """Say what a reader must know before believing a number, and what all runs have in common."""
    runs, points = comparison.runs, len(comparison.points)
    rehearsed = sum(run.rehearsed for run in runs)
    waiting = sum(run.state != "finished" for run in runs)
    nulls = {
        (n["null_win_low"], n["null_win_high"])
        for run in runs
        for step in run.steps
        if "null_win_low" in (n := step.numbers)
    }
    missed = sum(not low <= 0.5 <= high for low, high in nulls)
    usual = [(USUAL[key], value) for key, value in comparison.varied.same.items() if key in tables.ALWAYS]
    same = ", ".join(f"{symbol(name)} {shown(value)}" for name, value in usual) or "nothing that is usual"
    sentences = {
        f"The best of {points} points is partly luck: expect it to be lower with other seeds.": points > 1,
        f"{missed} of {len(nulls)} nulls (the base against itself) do not contain 0.5 in their interval.": missed,
        f"{rehearsed} of {len(runs)} runs are rehearsals with random weights: their numbers mean nothing.": rehearsed,
        f"{waiting} of {len(runs)} runs are unfinished: what they have is shown.": waiting,
        **dict.fromkeys(comparison.missing, True),
        f"{len(runs)} runs, {points} points. The same in all: {same}.": True,
    }
    return [sentence for sentence, holds in sentences.items() if holds]
