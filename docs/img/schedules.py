"""Draws schedules.png from the scheduler of the trainer: `python docs/img/schedules.py`, from the root of the tree."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

sys.path.insert(0, str(Path(__file__).parents[2]))
matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402

from bench.differences import PAIRS, learning_rates  # noqa: E402

STYLES = {18: ("#0072B2", "-"), 6: ("#D55E00", "--"), 1: ("#444444", "-.")}
"""Horizon in epochs -> colour (Okabe and Ito's, told apart by everyone) and line."""
SOURCES = {
    18: "18 epochs (paper, card of Mistral)",
    6: "6 epochs (card of Llama-3)",
    1: "1 epoch (code, card of Gemma-2)",
}
UNIT = 1e-7


def main() -> None:
    figure, axes = plt.subplots(figsize=(8.4, 4.6), dpi=130)
    rates = {horizon: [rate / UNIT for rate in learning_rates(horizon)] for horizon in STYLES}
    last = len(rates[1]) - 1
    for horizon, (colour, line) in STYLES.items():
        end = rates[horizon][-1]
        rising = ", still warming up" if end == max(rates[horizon]) else ""
        axes.plot(rates[horizon], color=colour, linestyle=line, linewidth=2.2)
        axes.plot([last], [end], "o", color=colour, clip_on=False)
        told = f"{SOURCES[horizon]}\nends at {end:.2f}{rising}" if end else f"{SOURCES[horizon]}\nends at 0"
        axes.annotate(told, (last, end), (8, 0), textcoords="offset points", va="center", color=colour)
    axes.set_xlim(0, last)
    axes.set_ylim(0, 5.4)
    axes.set_xlabel(f"optimiser step of the epoch that is trained ({PAIRS:,} pairs, 64 a step)")
    axes.set_ylabel("learning rate, in units of 1e-7")
    axes.set_title("The rate that training sees, by the horizon of its schedule", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"), metadata={"Software": None})


if __name__ == "__main__":
    main()
