"""A figure as files in two themes, and what all pictures of a comparison have in common."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps, rcParams, style
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from src.reporting.compare.points import Comparison, Point
from src.reporting.compare.read import WIN
from src.reporting.compare.settings import Value, in_order, numeric, shown

COLUMN, PAGE = 3.4, 7.0
"""Inches: a column of a paper, and both."""
LIGHT, DARK = (Path(__file__).with_name(f"{theme}.mplstyle") for theme in ("light", "dark"))
LABELS = {"eta": "η (nats)", "lr": "peak learning rate", "K": "answers per prompt, K"}
"""What the axis of a key says."""
LONGEST = 22
"""Letters of a name in a picture."""

for theme, low, high in (("light", 0.74, 0.06), ("dark", 0.42, 1.0)):  # high wins stand out from the page
    colours = colormaps["viridis"](np.linspace(low, high, 256))
    colormaps.register(ListedColormap(colours, f"compare_{theme}"), force=True)


class Measure(NamedTuple):
    key: str
    name: str
    title: str
    """With its unit."""
    label: str
    """Of an axis."""
    file: str


MEASURES = (
    Measure(WIN, "Win rate", "Win rate", "win rate over the base", "win_rate"),
    Measure("tokens", "Length", "Length (tokens)", "answer length (tokens)", "length"),
    Measure("kl_per_token", "KL", "KL (nats/token)", "KL to the base (nats/token)", "kl"),
)


class Picture(NamedTuple):
    name: str
    """Of the PNG, without its ending."""
    caption: str
    wide: bool
    png: bytes
    light: str
    dark: str
    """SVGs as data URIs, which a page has in it."""


def picture(name: str, caption: str, draw: Callable[[], Figure]) -> Picture:
    """Draws a figure once in each theme."""
    name = "".join(letter if letter.isalnum() else "_" for letter in name)
    png, themes, wide = io.BytesIO(), list[str](), False
    for styles in ([LIGHT], [LIGHT, DARK]):
        with style.context(styles):
            figure, svg = draw(), io.BytesIO()
            figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            themes.append(f"data:image/svg+xml;base64,{b64encode(svg.getvalue()).decode()}")
            if styles == [LIGHT]:
                figure.savefig(png, format="png", metadata={"Software": None})
                wide = figure.get_figwidth() > COLUMN
    return Picture(name, caption, wide, png.getvalue(), *themes)


class Drawn:
    """A comparison as its pictures see it."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison, self.names = comparison, comparison.names
        self.last = comparison.common_iteration

    @cached_property
    def marks(self) -> Any:
        """A row a point and iteration: the point, its values and numbers, and the reach of the win rate's interval."""
        rows = [
            {"point": point, "number": point.number, "iteration": t, **point.values}
            | {measure.key: point.mean(t, measure.key) for measure in MEASURES}
            | {"over": "seeds" if win.over == "seeds" else "held-out prompts"}
            | {"below": win.mean - win.low, "above": win.high - win.mean}
            for point in self.comparison.points
            for t in point.iterations
            if (win := point.win(t))
        ]
        numbers = dict.fromkeys([*(measure.key for measure in MEASURES), "below", "above"], float)
        return pd.DataFrame(rows, dtype=object).astype(numbers)

    @property
    def at_last(self) -> Any:
        """The marks of the last iteration that at least half of the points have come to."""
        return self.marks[self.marks["iteration"] == self.last]

    def label(self, key: str) -> str:
        return LABELS.get(self.names.get(key, key), self.names.get(key, key))

    def shade(self, wins: Any) -> Any:
        """Returns the colours of win rates, in steps equal to the eye."""
        low, high = self.marks[WIN].min(), self.marks[WIN].max()
        return ladder((np.asarray(wins) - low) / ((high - low) or 1.0))

    def base(self, measure: Measure) -> float | None:
        """Returns where the base is, if that is one number for all."""
        if measure.key in (WIN, "kl_per_token"):
            return 0.5 if measure.key == WIN else 0.0
        values = {row.step.numbers.get(f"base_{measure.key}") for row in self.comparison.rows if row.step}
        return values.pop() if len(values) == 1 else None

    def missing(self, points: Sequence[Point]) -> str:
        """Says how many points have not come to the last iteration; those that train nothing are not counted."""
        trained = [point for point in points if any(run.wanted for run in point.runs)]
        missing = sum(self.last not in point.iterations for point in trained)
        are = "is" if missing == 1 else "are"
        return f" {missing} of {len(trained)} points {are} not there yet." if missing else ""


def ladder(parts: Any) -> Any:
    """Returns the colours of places between low (0) and high (1)."""
    return colormaps[rcParams["image.cmap"]](parts)


def cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def ticks(values: Sequence[Value]) -> list[str]:
    return [cut(shown(value)) for value in values]


def scale(values: Sequence[Value]) -> tuple[dict[Value, float], bool]:
    """Places the values of a key on an axis, and says whether it is logarithmic."""
    ordered = in_order(values)
    if not numeric(ordered):
        return {value: float(i) for i, value in enumerate(ordered)}, False
    places = {value: float(value or 0) for value in ordered}
    low, high = min(places.values()), max(places.values())
    return places, low > 0 and high / low > 10


def heights_of(values: Sequence[Value]) -> tuple[list[float], list[tuple[float, str]]]:
    """Places values between 0 and 1, and names some of them."""
    places, log = scale(values)
    positions = np.array(list(places.values()))
    positions = np.log(positions) if log else positions
    spread = positions.max() - positions.min()
    heights = dict(zip(places, (positions - positions.min()) / spread if spread else [0.5], strict=True))
    named = list(heights) if len(heights) <= 9 else [list(heights)[0], list(heights)[-1]]
    return [heights[value] for value in values], [(heights[value], cut(shown(value))) for value in named]


def ink_on(colour: Sequence[float]) -> str:
    """Returns black or white, whichever has more contrast on a colour."""
    red, green, blue = (part**2.2 for part in colour[:3])
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else "white"
