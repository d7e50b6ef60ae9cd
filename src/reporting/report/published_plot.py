"""The picture of published numbers by iteration, with ours where they are measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from src.evaluation.benchmark import Result, of_table
from src.reporting.published import Published, Table, source_of
from src.reporting.report.benchmarks import NOT_COMPARABLE, NOT_MEASURED, lacking
from src.reporting.report.plots import BLUE, GREY, ORANGE, STYLE

SHOWN = ("LC win rate", "win rate", "MT-Bench", "average")
"""Measures of published tables that have a panel."""
_LOOKS = tuple(product(("-", "--", ":"), (GREY, ORANGE, "#805ad5", "#b7791f")))
"""Line and colour of a table; they come again where a panel has more tables."""


def draw_published(known: Published, found: Sequence[Result], iterations: int, path: Path) -> bool:
    """Write a panel a benchmark and measure to `path`; False, and no picture, where nothing is published of either."""
    panels: dict[tuple[str, str], list[Table]] = {}
    for table in known.tables:
        for measure in (measure for measure in SHOWN if measure in table.measures):
            panels.setdefault((table.benchmark, measure), []).append(table)
    if not panels:
        return False
    beside = math.ceil(math.sqrt(len(panels)))
    below = math.ceil(len(panels) / beside)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(below, beside, figsize=(4.2 * beside, 3.4 * below), squeeze=False)
        for panel, ((benchmark, measure), tables) in zip(axes.flat, panels.items(), strict=False):
            _panel(panel, benchmark, measure, tables, found, iterations)
        for panel in axes.flat[len(panels) :]:
            panel.remove()
        figure.tight_layout()
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
    return True


def _panel(
    axes: Axes, benchmark: str, measure: str, tables: list[Table], found: Sequence[Result], iterations: int
) -> None:
    ours = False
    for table, (line, colour) in zip(tables, cycle(_LOOKS), strict=False):
        column = table.measures.index(measure)
        points = {0 if t == "base" else t: values[column] for t, values in table.policies.items()}
        best = f", best of {table.best_of}" if table.best_of else ""
        label = source_of(table).kind + best
        _draw(axes, points, color=colour, ls=line, marker="s", ms=5, label=label)
    ways = dict.fromkeys(table.best_of for table in tables)
    for best_of in ways:
        ours = _ours(axes, benchmark, measure, best_of, found, iterations) or ours
    last = max(iterations, *(0 if t == "base" else t for table in tables for t in table.policies))
    axes.set_xticks(range(last + 1), ["base", *map(str, range(1, last + 1))])
    axes.set(xlabel="policy after iteration", title=benchmark if measure == benchmark else f"{benchmark}: {measure}")
    axes.margins(x=0.12, y=0.2)
    if not ours:
        reasons = {lacking(found, benchmark, best_of) for best_of in ways}
        why = NOT_COMPARABLE if NOT_COMPARABLE in reasons else NOT_MEASURED
        axes.text(0.98, 0.03, f"here: {why}", transform=axes.transAxes, ha="right", fontsize=9, color=BLUE)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _ours(
    axes: Axes, benchmark: str, measure: str, best_of: int | None, found: Sequence[Result], iterations: int
) -> bool:
    """Draw what was measured here; False where nothing was."""
    policies = ["base", *(f"it{t}" for t in range(1, iterations + 1))]
    results = {t: of_table(found, policy, benchmark, best_of) for t, policy in enumerate(policies)}
    values = {t: one.said(measure) for t, one in results.items() if one}
    if not any(value is not None for value in values.values()):
        return False
    best = f", best of {best_of}" if best_of else ""
    _draw(axes, values, color=BLUE, marker="D" if best else "o", label=f"here{best}")
    return True


def _draw(axes: Axes, points: dict[int, float | None], **style: Any) -> None:
    """By iteration; no line over one that has no value."""
    known = {t: value for t, value in points.items() if value is not None}
    times = range(min(known), max(known) + 1) if known else []
    axes.plot(times, [known.get(t, math.nan) for t in times], **style)
