"""The pictures of a report, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.reporting.report.gather import Story

PLOTS = "plots"
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
}


def draw_all(story: Story, folder: Path) -> dict[str, str]:
    """Write every picture into `folder`; returns file name -> what it shows."""
    folder.mkdir(exist_ok=True)
    pictures = {
        "win_rate.png": (_win_rate, "Held-out win rate by iteration, with the null and its interval"),
        "quality.png": (_quality, "What a hacked win rate would betray, by iteration"),
        "win_probabilities.png": (_win_probabilities, "Win probabilities of chosen and rejected answers"),
        "training.png": (_training, "Log-ratios, reward margin and scaled loss at every optimiser step"),
        "lengths.png": (_lengths, "Length of held-out answers"),
    }
    with plt.rc_context(STYLE):
        for name, (draw, _) in pictures.items():
            figure = draw(story)
            figure.savefig(folder / name, bbox_inches="tight", metadata={"Software": None})
            plt.close(figure)
    return {name: caption for name, (_, caption) in pictures.items()}


def _win_rate(story: Story) -> Figure:
    figure, axes = plt.subplots(figsize=(6, 3.6))
    t = [it.t for it in story.iterations]
    first = story.iterations[0].evaluation
    axes.axhspan(first["null_win_low"], first["null_win_high"], color=GREY, alpha=0.2, lw=0)
    axes.axhline(first["null_win"], color=GREY, lw=1, ls="--", label="null: base with other seeds")
    axes.axhline(0.5, color="black", lw=0.8)
    for key, label, color, shift in (
        ("win_over_base", "over the base", BLUE, -0.04),
        ("win_over_previous", "over the previous policy", ORANGE, 0.04),
    ):
        mean = np.array([it.evaluation[key] for it in story.iterations])
        low = mean - [it.evaluation[f"{key}_low"] for it in story.iterations]
        high = [it.evaluation[f"{key}_high"] for it in story.iterations] - mean
        bars = [low.tolist(), high.tolist()]
        axes.errorbar(np.array(t) + shift, mean, bars, color=color, marker="o", capsize=3, label=label)
    axes.set(xticks=t, xlabel="iteration", ylabel="P(new answer wins)", title="Held-out win rate")
    axes.legend(frameon=False, fontsize=9)
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
            first = story.iterations[0].evaluation[f"base_{key}"]
            values = [first, *(it.evaluation[key] for it in story.iterations)]
            panel.plot(range(len(values)), values, marker="o", color=color, label=label)
        _policies(panel, len(story.iterations))
        panel.set_title(title)
        panel.set_ylim(0, panel.get_ylim()[1] * 1.1)
        panel.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def _policies(axes: Axes, iterations: int) -> None:
    axes.set_xticks(range(iterations + 1), ["base", *(str(t) for t in range(1, iterations + 1))])
    axes.set_xlabel("policy after iteration")


def _win_probabilities(story: Story) -> Figure:
    count = len(story.iterations)
    figure, axes = plt.subplots(1, count, figsize=(3.6 * count, 3), sharey=True, squeeze=False)
    bins = np.linspace(0, 1, 21)
    for panel, it in zip(axes[0], story.iterations, strict=True):
        for side, color in (("chosen", BLUE), ("rejected", ORANGE)):
            panel.hist(
                [row[f"{side}_win"] for row in it.pair_rows],
                bins=list(bins),
                color=color,
                alpha=0.7,
                label=side,
            )
        panel.set(title=f"Iteration {it.t}", xlabel="P(answer beats the policy)")
    axes[0][0].set_ylabel("pairs")
    axes[0][0].legend(frameon=False, fontsize=9)
    figure.tight_layout()
    return figure


def _training(story: Story) -> Figure:
    figure, panels = plt.subplots(1, 3, figsize=(13, 3.2))
    start = 0
    for it in story.iterations:
        steps = np.arange(start, start + len(it.steps)) + 1
        for panel, key, color, label in (
            (panels[0], "chosen_logratio", BLUE, "chosen"),
            (panels[0], "rejected_logratio", ORANGE, "rejected"),
            (panels[1], "reward_margin", BLUE, ""),
            (panels[2], "loss_scaled", GREEN, ""),
        ):
            panel.plot(steps, [s[key] for s in it.steps], color=color, marker=".", label="" if start else label)
        start += len(it.steps)
        for panel in panels:
            panel.axvline(start + 0.5, color=GREY, lw=0.8, ls=":")
    titles = ("Log-ratio to the reference (nats)", "Reward margin (beta x log-ratios)", "Loss / unit (eta² for SPPO)")
    for panel, title in zip(panels, titles, strict=True):
        panel.set(title=title, xlabel="optimiser step")
    panels[0].legend(frameon=False, fontsize=9)
    figure.tight_layout()
    return figure


def _lengths(story: Story) -> Figure:
    figure, axes = plt.subplots(figsize=(6, 3.2))
    groups = [story.base_held_out, *(it.held_out for it in story.iterations)]
    lengths = [[len(row["responses"][0]["token_ids"]) for row in rows] for rows in groups]
    axes.boxplot(lengths, positions=range(len(groups)), widths=0.5, showmeans=True, patch_artist=True,
                 boxprops={"facecolor": "#bee3f8", "edgecolor": BLUE}, medianprops={"color": BLUE})  # fmt: skip
    _policies(axes, len(story.iterations))
    axes.set(title="Length of held-out answers (tokens; triangle: mean)", ylim=(0, None))
    return figure
