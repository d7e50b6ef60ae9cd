"""Draws packed_row.png from the code itself: `python docs/img/packed_row.py` from the root of the repository."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402

from src.modeling.attention import visible  # noqa: E402
from src.modeling.packing import Group, pack  # noqa: E402

COLOURS = {"prompt": "#4C6A92", "chosen": "#5BA37C", "rejected": "#C9735B"}
GROUPS = [Group([1] * 5, [[2] * 5, [3] * 4]), Group([1] * 3, [[2] * 4, [3] * 6])]


def main() -> None:
    packed = pack(GROUPS)
    names = [
        name for p, answers in packed.spans for name, n in zip(COLOURS, (p, *answers), strict=True) for _ in range(n)
    ]
    seen, start = np.zeros((len(names), len(names)), bool), 0
    for prompt, answers in packed.spans:
        offset = start + prompt
        seen[start:offset, start:offset] = visible(0, prompt, None).numpy()
        for answer in answers:
            keys = [*range(start, start + prompt), *range(offset, offset + answer)]
            seen[np.ix_(range(offset, offset + answer), keys)] = visible(prompt, prompt + answer, None).numpy()
            offset += answer
        start = offset
    picture = np.ones((*seen.shape, 3))
    for query, key in np.argwhere(seen):
        picture[query, key] = matplotlib.colors.to_rgb(COLOURS[names[key]])
    figure, axes = plt.subplots(figsize=(7.2, 6.4), dpi=130)
    axes.imshow(picture)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.set_xticks(range(len(names)), packed.position_ids[0].tolist(), fontsize=8)
    axes.set_yticks(range(len(names)), packed.position_ids[0].tolist(), fontsize=8)
    axes.set_xlabel("token of the row, by its position: is seen by …")
    axes.set_ylabel("… the token of the row")
    axes.set_title("One row, two pairs; white: not visible", fontsize=11)
    boundary = GROUPS[0].tokens - 0.5
    axes.axhline(boundary, color="black", linewidth=1)
    axes.axvline(boundary, color="black", linewidth=1)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    axes.legend(handles, COLOURS, loc="upper right", framealpha=1)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"), metadata={"Software": None})


if __name__ == "__main__":
    main()
