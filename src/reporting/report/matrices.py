"""Pictures of P(y_i > y_j) among the answers to sample prompts."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from src.pairing.win_probability import Estimator
from src.reporting.report.gather import Story
from src.reporting.report.plots import PLOTS, STYLE

PROMPTS = 3
MOST_NUMBERS = 8
"""Answers up to which every field has its number."""


def draw_matrices(story: Story, estimator: Estimator, folder: Path) -> str:
    """Draw the prompts of the last iteration whose answers the report shows; returns the name below `folder/plots`."""
    last, name = story.iterations[-1], "matrices.png"
    shown = last.ranking[:PROMPTS]
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, panels = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 3.8), squeeze=False)
        for number, (panel, ranking) in enumerate(zip(panels[0], shown, strict=True), start=1):
            _draw(panel, estimator.matrix(ranking))
            panel.set_title(f"Training prompt {number}, iteration {last.t}")
        panels[0][0].set_ylabel("answer")
        figure.tight_layout()
        figure.savefig(folder / PLOTS / name, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
    return name


def _draw(panel: Axes, matrix: np.ndarray) -> None:
    panel.imshow(matrix, vmin=0, vmax=1, cmap="RdBu")
    k = len(matrix)
    panel.set(xticks=range(k), yticks=range(k), xlabel="beats answer", xticklabels=range(1, k + 1))
    panel.set_yticklabels([str(i) for i in range(1, k + 1)])
    for i, j in np.ndindex(k, k) if k <= MOST_NUMBERS else ():
        extreme = abs(matrix[i, j] - 0.5) > 0.35
        panel.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", color="white" if extreme else "black", size=8)
