"""The matrix as a heat map: the row's policy beats the column's where it is blue; lengths beside the names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from src.evaluation.win_matrix.scores import Answers, Matrix, WinMatrixScores

LEAST_RANGE = 0.1
"""Around 1/2 that colours span at least, so that noise is pale."""
PALER = 1.2
"""Than at its ends a colour map is at the largest number."""
DARK = 0.62
"""Share of the range from which numbers are white."""
SAME, DISTINCT = 0.05, 0.9
"""Share of prompts with the same answer of both policies, and of different answers of one, that are remarked on."""
MOST_REMARKS = 4


def draw(stage: WinMatrixScores, matrix: Matrix, answers: Answers, longer: float | None, path: Path) -> None:
    """Write a PNG; the same numbers give the same bytes."""
    from matplotlib import rc_context, rcdefaults
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context():
        rcdefaults()
        m = len(stage.names)
        remarks = _caption(stage, matrix, answers, longer)
        figure = Figure(figsize=(3.4 + 1.0 * m, 1.5 + 0.8 * m + 0.2 * len(remarks)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        _fill(figure, stage, matrix, answers)
        figure.supxlabel("\n".join(remarks), x=0.01, ha="left", fontsize=8, color="#4a5568")
        figure.savefig(path, metadata={"Software": None})


def _fill(figure: Figure, stage: WinMatrixScores, matrix: Matrix, answers: Answers) -> None:
    axes, m = figure.add_subplot(), len(stage.names)
    off = ~np.eye(m, dtype=bool)
    reach = max(LEAST_RANGE, PALER * float(np.abs(matrix.win - 0.5)[off].max()))
    shown: Any = np.ma.masked_array(matrix.win, ~off)
    axes.set_facecolor("#e2e8f0")
    image = axes.imshow(shown, vmin=0.5 - reach, vmax=0.5 + reach, cmap="RdBu", aspect="auto")
    for i, j in zip(*np.nonzero(off), strict=True):
        _number(axes, int(i), int(j), matrix, bool(abs(matrix.win[i, j] - 0.5) / reach > DARK))
    axes.set_xticks(range(m), [_short(name) for name in stage.names], rotation=30 if _long(stage.names) else 0)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("left" if _long(stage.names) else "center")
    lengths = zip(stage.names, answers.characters.mean(0), answers.tokens.mean(0), strict=True)
    axes.set_yticks(range(m), [f"{_short(name)}\n{c:,.0f} characters\n{t:,.0f} tokens" for name, c, t in lengths])
    axes.set_xticks(np.arange(m + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(m + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"P(row beats column), by {stage.judge}", loc="left", fontweight="bold", fontsize=11)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=24)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(labelsize=8)


def _number(axes: Axes, i: int, j: int, matrix: Matrix, dark: bool) -> None:
    colour = "white" if dark else "black"
    axes.text(j, i - 0.1, f"{matrix.win[i, j]:.3f}", ha="center", va="center", color=colour, weight="bold", fontsize=10)
    interval = f"{matrix.low[i, j]:.2f} – {matrix.high[i, j]:.2f}"
    axes.text(j, i + 0.2, interval, ha="center", va="center", color=colour, fontsize=7.5)


def _caption(stage: WinMatrixScores, matrix: Matrix, answers: Answers, longer: float | None) -> list[str]:
    count = len(answers.texts)
    lines = [f"{count:,} held-out prompts; {stage.confidence:.0%} intervals: bootstrap over the prompts"]
    if longer is not None:
        lines.append(f"The longer of two answers (in characters) wins with {longer:.3f}")
    remarks = [
        f"{name}: only {len({texts[i] for texts in answers.texts}):,} different answers to {count:,} prompts"
        for i, name in enumerate(stage.names)
        if len({texts[i] for texts in answers.texts}) < DISTINCT * count
    ]
    remarks += [
        f"{stage.names[i]} and {stage.names[j]}: the same answer to {matrix.same[i, j]:.0%} of the prompts, a half each"
        for i, j in zip(*np.tril_indices(len(stage.names), -1), strict=True)
        if matrix.same[i, j] >= SAME
    ]
    more = [f"… and {len(remarks) - MOST_REMARKS} more such remarks"] if len(remarks) > MOST_REMARKS else []
    return lines + remarks[:MOST_REMARKS] + more


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"


def _long(names: tuple[str, ...]) -> bool:
    """Whether they would run into each other above the columns."""
    return max(map(len, names)) > 9
