"""Draws iteration.png, the picture of docs/README.md: `python docs/img/iteration.py`, from the root of the tree."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch  # noqa: E402

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
"""Okabe and Ito's, told apart by everyone."""
WIDE, HIGH = 2.0, 0.82
EVALUATED = 0.35
"""Height of the lowest row."""
STAGES = {
    "prompts": (1.2, 4.2, "prompts of\niteration t", "data", GREY),
    "policy": (1.2, 2.2, "policy $\\pi_t$", "model, or what was trained", GREY),
    "responses": (4.2, 3.2, "K answers\na prompt", "sampling, hardware.engine", BLUE),
    "ranking": (7.0, 3.2, "comparisons", "ranker", BLUE),
    "pairs": (9.8, 3.2, "pairs, with\nwin probabilities", "estimator, pairing", BLUE),
    "reference": (9.8, 1.3, "log-probabilities\nunder $\\pi_t$", "", BLUE),
    "next": (6.2, EVALUATED, "policy $\\pi_{t+1}$", "method, train", ORANGE),
    "evaluation": (2.8, EVALUATED, "win rate, length,\nKL; benchmarks", "held_out, benchmark", GREEN),
}
ARROWS = [
    ("prompts", "responses", 0.0),
    ("policy", "responses", 0.0),
    ("responses", "ranking", 0.0),
    ("ranking", "pairs", 0.0),
    ("pairs", "reference", 0.0),
    ("reference", "next", 0.0),
    ("next", "evaluation", 0.0),
]


def main() -> None:
    figure, axes = plt.subplots(figsize=(9.6, 4.6), dpi=130)
    for x, y, text, keys, colour in STAGES.values():
        box = FancyBboxPatch(
            (x - WIDE / 2, y - HIGH / 2), WIDE, HIGH, "round,pad=0.06", fc="white", ec=colour, linewidth=1.8
        )
        axes.add_patch(box)
        axes.text(x, y, text, ha="center", va="center", fontsize=9.5, color="black")
        side = 1 if y > EVALUATED else -1  # clear of the arrows
        axes.text(
            x, y + side * (HIGH / 2 + 0.24), keys, ha="center", va="center", fontsize=7.8, color=colour, style="italic"
        )
    for start, end, bend in ARROWS:
        _arrow(axes, STAGES[start][:2], STAGES[end][:2], bend, GREY)
    _arrow(axes, STAGES["next"][:2], STAGES["policy"][:2], 0.0, ORANGE)
    axes.text(3.2, 1.62, "t + 1", fontsize=9, color=ORANGE, style="italic")
    axes.set_xlim(-0.1, 11.2)
    axes.set_ylim(-0.45, 4.9)
    axes.set_aspect("equal")
    axes.axis("off")
    figure.savefig(Path(__file__).with_name("iteration.png"), bbox_inches="tight", metadata={"Software": None})


def _arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float], bend: float, colour: str) -> None:
    """From the edge of a box to the edge of another."""
    (x0, y0), (x1, y1) = start, end
    axes.add_patch(
        FancyArrowPatch(
            _edge(x0, y0, x1, y1),
            _edge(x1, y1, x0, y0),
            arrowstyle="-|>",
            mutation_scale=13,
            linewidth=1.4,
            color=colour,
            connectionstyle=f"arc3,rad={bend}",
        )
    )


def _edge(x: float, y: float, to_x: float, to_y: float) -> tuple[float, float]:
    wide, high = WIDE / 2 + 0.1, HIGH / 2 + 0.1
    dx, dy = to_x - x, to_y - y
    scale = min(wide / abs(dx) if dx else 9, high / abs(dy) if dy else 9)
    return x + dx * scale, y + dy * scale


if __name__ == "__main__":
    main()
