"""The win-rate matrix as a heat map: the row's policy beats the column's where it is blue; lengths beside the names."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

LEAST_RANGE = 0.1
"""Around 1/2 that colours span at least, so that noise is pale."""
SAME, DISTINCT = 0.05, 0.9
"""Share of prompts with the same answer of both policies, and of different answers of one, that are remarked on."""
MOST_REMARKS = 4

Numbers = Mapping[str, float | None]


def draw_win_matrix(numbers: Numbers, judge: str, confidence: float, path: Path) -> None:
    """Writes a PNG of the `metrics.json` of a win matrix; the same numbers give the same bytes."""
    from matplotlib import rc_context, rcdefaults
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [key.removesuffix("_distinct") for key in numbers if key.endswith("_distinct")]
    m, remarks = len(names), _remarks(numbers, names, confidence)
    win = np.ma.masked_all((m, m))
    for i, j in np.ndindex(m, m):
        if i != j:
            win[i, j] = numbers[f"{names[i]}_over_{names[j]}"]
    reach = max(LEAST_RANGE, 1.2 * float(np.abs(win - 0.5).max()))
    with rc_context():
        rcdefaults()
        figure = Figure(figsize=(3.4 + 1.0 * m, 1.5 + 0.8 * m + 0.2 * len(remarks)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_facecolor("#e2e8f0")
        image = axes.imshow(win, vmin=0.5 - reach, vmax=0.5 + reach, cmap="RdBu", aspect="auto")
        for i, j in zip(*np.nonzero(~np.eye(m, dtype=bool)), strict=True):
            low, high = (numbers[f"{names[i]}_over_{names[j]}_{end}"] for end in ("low", "high"))
            style: dict[str, Any] = {"ha": "center", "va": "center"}
            style["color"] = "white" if abs(win[i, j] - 0.5) > 0.62 * reach else "black"
            axes.text(j, i - 0.1, f"{win[i, j]:.3f}", weight="bold", fontsize=10, **style)
            axes.text(j, i + 0.2, f"{low:.2f} – {high:.2f}", fontsize=7.5, **style)
        long = max(map(len, names)) > 9  # they would run into each other above the columns
        labels = [name if len(name) <= 20 else f"{name[:19]}…" for name in names]
        axes.set_xticks(range(m), labels, rotation=30 if long else 0, ha="left" if long else "center")
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        lengths = [
            f"{numbers[f'{name}_characters']:,.0f} characters\n{numbers[f'{name}_tokens']:,.0f} tokens"
            for name in names
        ]
        axes.set_yticks(range(m), [f"{label}\n{length}" for label, length in zip(labels, lengths, strict=True)])
        axes.set_xticks(np.arange(m + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(m + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
        axes.tick_params(which="minor", length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(f"P(row beats column), by {judge}", loc="left", fontweight="bold", fontsize=11)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=24)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.ax.tick_params(labelsize=8)
        figure.supxlabel("\n".join(remarks), x=0.01, ha="left", fontsize=8, color="#4a5568")
        figure.savefig(path, metadata={"Software": None})


def _remarks(numbers: Numbers, names: list[str], confidence: float) -> list[str]:
    """Writes the caption, and what makes numbers say less than they seem to."""
    count, longer = numbers["items"] or 0, numbers["longer_wins"]
    lines = [f"{count:,} held-out prompts; {confidence:.0%} intervals: bootstrap over the prompts"]
    if longer is not None:
        lines.append(f"The longer of two answers (in characters) wins with {longer:.3f}")
    remarks = [
        f"{name}: only {distinct:,} different answers to {count:,} prompts"
        for name in names
        if (distinct := numbers[f"{name}_distinct"] or 0) < DISTINCT * count
    ]
    remarks += [
        f"{other} and {name}: the same answer to {same:.0%} of the prompts, a half each"
        for name, other in combinations(names, 2)
        if (same := numbers[f"{other}_same_as_{name}"] or 0) >= SAME
    ]
    more = [f"… and {len(remarks) - MOST_REMARKS} more such remarks"] if len(remarks) > MOST_REMARKS else []
    return lines + remarks[:MOST_REMARKS] + more
