"""The pictures of a report, as PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.evaluation.results import Result, of_table
from src.pairing.win_probability import Estimator
from src.reporting.gather import Story
from src.reporting.published import NOT_COMPARABLE, NOT_MEASURED, Published, Table, lacking, source_of

BLUE, ORANGE, GREY, GREEN = "#2b6cb0", "#dd6b20", "#718096", "#2f855a"
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "font.size": 10,
    "figure.dpi": 130,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
PROMPTS = 3
"""Prompts whose win probabilities are drawn."""
MOST_NUMBERS = 8
"""Answers up to which every field of a matrix has its number."""
DRAWN = ("LC win rate", "win rate", "MT-Bench", "average")
"""Measures of published tables that have a panel."""
LINES = tuple(product(("-", "--", ":"), (GREY, ORANGE, "#805ad5", "#b7791f")))
"""Line and colour of a published table; they come again where a panel has more tables."""


def draw_all(story: Story, estimator: Estimator, folder: Path) -> None:
    """Draws what a report shows of the iterations."""
    with plt.rc_context(STYLE):
        for name, figure in {
            "win_rate": _win_rate(story),
            "quality": _quality(story),
            "win_probabilities": _win_probabilities(story),
            "training": _training(story),
            "lengths": _lengths(story),
            "matrices": _matrices(story, estimator),
        }.items():
            _save(figure, folder / f"{name}.png")


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def _win_rate(story: Story) -> Figure:
    figure, axes = plt.subplots(figsize=(6, 3.6))
    base, trained = story.numbers.iloc[0], story.numbers.iloc[1:]
    axes.axhspan(base["win_over_base_low"], base["win_over_base_high"], color=GREY, alpha=0.2, lw=0)
    axes.axhline(base["win_over_base"], color=GREY, lw=1, ls="--", label="null: base with other seeds")
    axes.axhline(0.5, color="black", lw=0.8)
    t = np.arange(1, len(trained) + 1)
    for key, label, color, shift in (
        ("win_over_base", "over the base", BLUE, -0.04),
        ("win_over_previous", "over the previous policy", ORANGE, 0.04),
    ):
        mean = trained[key]
        bars = [(mean - trained[f"{key}_low"]).tolist(), (trained[f"{key}_high"] - mean).tolist()]
        axes.errorbar(t + shift, mean, bars, color=color, marker="o", capsize=3, label=label)
    axes.set(xticks=t, xlabel="iteration", ylabel="P(new answer wins)", title="Held-out win rate")
    axes.legend()
    return figure


def _quality(story: Story) -> Figure:
    figure, axes = plt.subplots(1, 4, figsize=(13, 3))
    panels = (
        ("Checks kept", ("seen_accuracy", "unseen_accuracy"), ("trained kinds", "unseen kinds")),
        ("Answers", ("finished", "empty", "repetition"), ("finished", "empty", "repeated trigrams")),
        ("Content", ("relevance", "echo"), ("relevance (cosine)", "copied trigrams")),
        ("PMI with the prompt", ("pmi",), ("as the ranker scales it",)),
    )
    for panel, (title, keys, labels) in zip(axes, panels, strict=True):
        for key, label, color in zip(keys, labels, (BLUE, ORANGE, GREEN), strict=False):
            values = story.numbers[key].astype(float)
            panel.plot(range(len(values)), values, marker="o", color=color, label=label)
        _name_policies(panel, len(story.steps))
        panel.set_title(title)
        panel.set_ylim(0, panel.get_ylim()[1] * 1.1)
        panel.legend(fontsize=8)
    figure.tight_layout()
    return figure


def _name_policies(axes: Axes, iterations: int) -> None:
    axes.set_xticks(range(iterations + 1), ["base", *map(str, range(1, iterations + 1))])
    axes.set_xlabel("policy after iteration")


def _win_probabilities(story: Story) -> Figure:
    count = len(story.pair_rows)
    figure, axes = plt.subplots(1, count, figsize=(3.6 * count, 3), sharey=True, squeeze=False)
    bins = np.linspace(0, 1, 21).tolist()
    for t, (panel, rows) in enumerate(zip(axes[0], story.pair_rows, strict=True), start=1):
        for side, color in (("chosen", BLUE), ("rejected", ORANGE)):
            panel.hist([row[f"{side}_win"] for row in rows], bins=bins, color=color, alpha=0.7, label=side)
        panel.set(title=f"Iteration {t}", xlabel="P(answer beats the policy)")
    axes[0][0].set_ylabel("pairs")
    axes[0][0].legend()
    figure.tight_layout()
    return figure


def _training(story: Story) -> Figure:
    figure, panels = plt.subplots(1, 3, figsize=(13, 3.2))
    start = 0
    for steps in story.steps:
        x = np.arange(start, start + len(steps)) + 1
        for panel, key, color, label in (
            (panels[0], "chosen_logratio", BLUE, "chosen"),
            (panels[0], "rejected_logratio", ORANGE, "rejected"),
            (panels[1], "reward_margin", BLUE, ""),
            (panels[2], "loss_scaled", GREEN, ""),
        ):
            panel.plot(x, steps[key], color=color, marker=".", label="" if start else label)
        start += len(steps)
        for panel in panels:
            panel.axvline(start + 0.5, color=GREY, lw=0.8, ls=":")
    titles = ("Log-ratio to the reference (nats)", "Reward margin (beta x log-ratios)", "Loss / unit (eta² for SPPO)")
    for panel, title in zip(panels, titles, strict=True):
        panel.set(title=title, xlabel="optimiser step")
    panels[0].legend()
    figure.tight_layout()
    return figure


def _lengths(story: Story) -> Figure:
    figure, axes = plt.subplots(figsize=(6, 3.2))
    lengths = [[len(row["responses"][0]["token_ids"]) for row in rows] for rows in story.held_out]
    axes.boxplot(lengths, positions=range(len(lengths)), widths=0.5, showmeans=True, patch_artist=True,
                 boxprops={"facecolor": "#bee3f8", "edgecolor": BLUE}, medianprops={"color": BLUE})  # fmt: skip
    _name_policies(axes, len(story.steps))
    axes.set(title="Length of held-out answers (tokens; triangle: mean)", ylim=(0, None))
    return figure


def _matrices(story: Story, estimator: Estimator) -> Figure:
    """P(row's answer beats column's), for prompts of the last iteration whose answers the report shows."""
    rankings = story.last_ranking[:PROMPTS]
    figure, panels = plt.subplots(1, len(rankings), figsize=(4.2 * len(rankings), 3.8), squeeze=False)
    for number, (panel, ranking) in enumerate(zip(panels[0], rankings, strict=True), start=1):
        matrix = estimator.matrix(ranking)
        k = len(matrix)
        panel.imshow(matrix, vmin=0, vmax=1, cmap="RdBu")
        panel.grid(False)
        panel.set(xlabel="beats answer", title=f"Training prompt {number}, iteration {len(story.steps)}")
        panel.set(xticks=range(k), yticks=range(k), xticklabels=range(1, k + 1), yticklabels=range(1, k + 1))
        for i, j in np.ndindex(k, k) if k <= MOST_NUMBERS else ():
            color = "white" if abs(matrix[i, j] - 0.5) > 0.35 else "black"
            panel.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", color=color, size=8)
    panels[0][0].set_ylabel("answer")
    figure.tight_layout()
    return figure


def draw_published(known: Published, ours: Sequence[Result], iterations: int, path: Path) -> bool:
    """Draws a panel for each benchmark and measure; returns False, and draws none, where none is published."""
    panels: dict[tuple[str, str], list[Table]] = {}
    for table in known.tables:
        for measure in (measure for measure in DRAWN if measure in table.measures):
            panels.setdefault((table.benchmark, measure), []).append(table)
    if not panels:
        return False
    columns = math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.4 * rows), squeeze=False)
        for panel, ((benchmark, measure), tables) in zip(axes.flat, panels.items(), strict=False):
            _draw_measure(panel, benchmark, measure, tables, ours, iterations)
        for panel in axes.flat[len(panels) :]:
            panel.remove()
        figure.tight_layout()
        _save(figure, path)
    return True


def _draw_measure(
    axes: Axes, benchmark: str, measure: str, tables: list[Table], ours: Sequence[Result], iterations: int
) -> None:
    for table, (line, colour) in zip(tables, cycle(LINES), strict=False):
        column = table.measures.index(measure)
        points = {0 if t == "base" else t: values[column] for t, values in table.policies.items()}
        best = f", best of {table.best_of}" if table.best_of else ""
        _draw_line(axes, points, color=colour, ls=line, marker="s", ms=5, label=source_of(table).kind + best)
    missing = []
    for best_of in dict.fromkeys(table.best_of for table in tables):
        policies = ["base", *(f"it{t}" for t in range(1, iterations + 1))]
        results = {t: of_table(ours, policy, benchmark, best_of) for t, policy in enumerate(policies)}
        values = {t: one.said(measure) for t, one in results.items() if one}
        if all(value is None for value in values.values()):
            missing.append(lacking(ours, benchmark, best_of))
        else:
            label, marker = (f"here, best of {best_of}", "D") if best_of else ("here", "o")
            _draw_line(axes, values, color=BLUE, marker=marker, label=label)
    if len(missing) == len({table.best_of for table in tables}):
        why = NOT_COMPARABLE if NOT_COMPARABLE in missing else NOT_MEASURED
        axes.text(0.98, 0.03, f"here: {why}", transform=axes.transAxes, ha="right", fontsize=9, color=BLUE)
    last = max(iterations, *(0 if t == "base" else t for table in tables for t in table.policies))
    _name_policies(axes, last)
    axes.set(title=benchmark if measure == benchmark else f"{benchmark}: {measure}")
    axes.margins(x=0.12, y=0.2)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _draw_line(axes: Axes, points: dict[int, float | None], **style: Any) -> None:
    """Draws values by iteration, with a gap where one is missing."""
    known = {t: value for t, value in points.items() if value is not None}
    times = range(min(known), max(known) + 1) if known else []
    axes.plot(times, [known.get(t, math.nan) for t in times], **style)
