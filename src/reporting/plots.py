"""The pictures of a report, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from src.kernel.rows import Row

BLUE, ORANGE, GREEN, GREY = "#2b6cb0", "#dd6b20", "#2f855a", "#718096"
STYLE = Path(__file__).with_name("report.mplstyle")
MOST_NUMBERS = 8
"""Policies up to which every field of a win matrix has its number."""


def draw_all(
    numbers: pd.DataFrame, steps: Sequence[pd.DataFrame], pairs: Sequence[Sequence[Row]], folder: Path, judge: str
) -> None:
    """Draw the pictures of the iterations, whose win rates are the verdicts of `judge`.

    `numbers` has one row per policy, the base first; `steps` and `pairs` have one entry per iteration.
    """
    with plt.style.context(STYLE):
        _save(_win_rate(numbers, judge), folder / "win_rate.png")
        _save(_win_probabilities(pairs), folder / "win_probabilities.png")
        _save(_training(steps), folder / "training.png")


def draw_win_matrix(numbers: Mapping[str, Any], judge: str, path: Path) -> None:
    """Draw the `metrics.json` of a win matrix: the row's policy beats the column's where it is blue."""
    names = [key.removesuffix("_distinct") for key in numbers if key.endswith("_distinct")]
    matrix = np.array([[numbers.get(f"{a}_over_{b}", 0.5) for b in names] for a in names], dtype=float)
    reach = max(0.1, 1.2 * float(np.abs(matrix - 0.5).max()))
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(3 + len(names), 1.5 + 0.8 * len(names)))
        axes.imshow(matrix, vmin=0.5 - reach, vmax=0.5 + reach, cmap="RdBu")
        axes.grid(False)
        for (i, j), value in np.ndenumerate(matrix) if len(names) <= MOST_NUMBERS else ():
            color = "white" if abs(value - 0.5) > 0.7 * reach else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, size=8)
        lengths = [f"{name}\n{numbers[f'{name}_tokens']:.0f} tokens" for name in names]
        axes.set(title=f"P(row beats column), by {judge}", xticks=range(len(names)), yticks=range(len(names)),
                 xticklabels=names, yticklabels=lengths)  # fmt: skip
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def _win_rate(numbers: pd.DataFrame, judge: str) -> Figure:
    figure, axes = plt.subplots(figsize=(6, 3.6))
    base, trained = numbers.iloc[0], numbers.iloc[1:]
    axes.axhspan(base["win_over_base_low"], base["win_over_base_high"], color=GREY, alpha=0.2, lw=0)
    axes.axhline(base["win_over_base"], color=GREY, lw=1, ls="--", label="null: base with other seeds")
    axes.axhline(0.5, color="black", lw=0.8)
    t = np.arange(1, len(trained) + 1)
    for key, label, color, shift in (
        ("win_over_base", "over the base", BLUE, -0.04),
        ("second_win_over_base", "over the base, by the second judge", GREEN, 0.0),
        ("win_over_previous", "over the previous policy", ORANGE, 0.04),
    ):
        if key in trained:
            mean = trained[key]
            bars = [(mean - trained[f"{key}_low"]).tolist(), (trained[f"{key}_high"] - mean).tolist()]
            axes.errorbar(t + shift, mean, bars, color=color, marker="o", capsize=3, label=label)
    title = f"Held-out win rate, judged by {judge}"
    axes.set(xlim=(0.5, len(t) + 0.5), xticks=t, xlabel="iteration", ylabel="P(new answer wins)", title=title)
    axes.legend()
    return figure


def _win_probabilities(pairs: Sequence[Sequence[Row]]) -> Figure:
    figure, axes = plt.subplots(1, len(pairs), figsize=(3.6 * len(pairs), 3), sharey=True, squeeze=False)
    bins = np.linspace(0, 1, 21).tolist()
    for t, (panel, rows) in enumerate(zip(axes[0], pairs, strict=True), start=1):
        for side, color in (("chosen", BLUE), ("rejected", ORANGE)):
            panel.hist([row[f"{side}_win"] for row in rows], bins=bins, color=color, alpha=0.7, label=side)
        panel.set(title=f"Iteration {t}", xlabel="P(answer beats the policy)", ylabel="pairs")
    axes[0][0].legend()
    return figure


def _training(steps: Sequence[pd.DataFrame]) -> Figure:
    panels = {
        "Log-ratio to the reference (nats)": {"chosen_logratio": "chosen", "rejected_logratio": "rejected"},
        "Reward margin (beta x log-ratios)": {"reward_margin": "chosen over rejected"},
        "Loss / unit (eta² for SPPO)": {"loss_scaled": "loss"},
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.2))
    every = pd.concat(list(steps), ignore_index=True)
    for panel, (title, lines) in zip(axes, panels.items(), strict=True):
        for (key, label), color in zip(lines.items(), (BLUE, ORANGE), strict=False):
            panel.plot(np.arange(len(every)) + 1, every[key], color=color, marker=".", label=label)
        for end in np.cumsum([len(frame) for frame in steps]):
            panel.axvline(end + 0.5, color=GREY, lw=0.8, ls=":")
        panel.set(title=title, xlabel="optimiser step")
        panel.legend()
    return figure
