"""Scales, ticks and labels that the plots of a comparison have in common."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_high
from typing import TYPE_CHECKING, NamedTuple

from src.reporting.compare.gather import WIN
from src.reporting.compare.palette import MUTED
from src.reporting.compare.points import Comparison, Point
from src.reporting.compare.svg import belongs
from src.reporting.compare.varied import Value, in_order, label, numeric, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TICKS = 7
WIDE_SPAN = 10
"""Largest over smallest value beyond which a scale is logarithmic."""
LINE_GAP = 0.085
"""Of the height of a plot, between labels at the ends of its lines."""
LONGEST = 22
"""Letters of a label."""


class Measure(NamedTuple):
    name: str
    title: str
    label: str
    file: str
    short: str


MEASURES = (
    Measure(WIN, "Win rate", "win rate over the base", "win_rate", "win rate"),
    Measure("tokens", "Length", "answer length (tokens)", "length", "length"),
    Measure("kl_per_token", "KL", "KL to the base (nats/token)", "kl", "KL"),
)


class Scale(NamedTuple):
    """Where the values of a key lie on an axis."""

    values: list[Value]
    words: bool
    log: bool

    def place(self, value: Value) -> float:
        return float(self.values.index(value)) if self.words else float(value or 0)

    def dodged(self, value: Value, number: int, count: int) -> float:
        """Beside it, so that the intervals of several lines can be told apart."""
        shift = (number - (count - 1) / 2) * min(0.012, 0.06 / count)
        places = [self.place(each) for each in self.values]
        if self.log:
            return self.place(value) * (max(places) / min(places)) ** shift
        return self.place(value) + shift * ((max(places) - min(places)) or 1)


def scale_of(values: Sequence[Value]) -> Scale:
    ordered = in_order(values)
    words = not numeric(ordered)
    return Scale(ordered, words, not words and wide([float(value or 0) for value in ordered]))


def wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > WIDE_SPAN


def set_x(panel: Axes, scale: Scale, name: str) -> None:
    """Ticks at the values that there are."""
    panel.set_xlabel(label(name))
    if scale.log:
        panel.set_xscale("log")
        panel.minorticks_off()
    places = [scale.place(value) for value in scale.values]
    texts = [cut(shown(value)) for value in scale.values]
    if len(places) <= MOST_TICKS or scale.words:
        panel.set_xticks(places, texts)
        if sum(map(len, texts)) > 40:
            panel.tick_params(axis="x", labelrotation=30)
            for tick in panel.get_xticklabels():
                tick.set_horizontalalignment("right")
    if scale.words:
        panel.set_xlim(-0.5, len(places) - 0.5)


def cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


class Ending(NamedTuple):
    """A label at the right end of a line."""

    height: float
    text: str
    colour: str
    point: int | None


def label_ends(panel: Axes, endings: Sequence[Ending]) -> None:
    """Beside the plot, as near to the ends of the lines as they do not cover each other."""
    low, high = panel.get_ylim()
    ordered = sorted(endings, key=lambda ending: ending.height)
    heights = spread([(ending.height - low) / (high - low) for ending in ordered], LINE_GAP)
    for height, ending in zip(heights, ordered, strict=True):
        text = panel.text(1.02, height, cut(ending.text), color=ending.colour, size=7.5, va="center",
                          transform=panel.transAxes)  # fmt: skip
        if ending.point is not None:
            belongs(text, ending.point, ending.text)


def spread(heights: list[float], gap: float) -> list[float]:
    """Ascending heights moved as little as is needed for `gap` between them."""
    blocks: list[list[float]] = []
    for height in heights:
        blocks.append([height])
        while len(blocks) > 1 and _bottom(blocks[-1], gap) - _top(blocks[-2], gap) < gap:
            above = blocks.pop()
            blocks[-1] += above
    return [_bottom(block, gap) + i * gap for block in blocks for i in range(len(block))]


def _bottom(block: list[float], gap: float) -> float:
    return sum(block) / len(block) - (len(block) - 1) * gap / 2


def _top(block: list[float], gap: float) -> float:
    return _bottom(block, gap) + (len(block) - 1) * gap


def reference(panel: Axes, measure: Measure, found: Comparison) -> list[Ending]:
    """A line where the base is, if that is one number for all; returns its label."""
    value = base_value(measure, found)
    if value is None:
        return []
    panel.axhline(value, color=MUTED, lw=0.9, ls=(0, (4, 2)), zorder=1)
    return [Ending(value, "base", MUTED, None)]


def base_value(measure: Measure, found: Comparison) -> float | None:
    if measure.name == WIN:
        return 0.5
    if measure.name == "kl_per_token":
        return 0.0
    values = {row.step.numbers.get(f"base_{measure.name}") for row in found.rows if row.step}
    return values.pop() if len(values) == 1 else None


def common_iteration(found: Comparison) -> int:
    """The last one that at least half of the points have come to; those without an evaluation do not count."""
    return median_high(point.iterations[-1] for point in found.points if point.iterations)


def behind(points: Sequence[Point], iteration: int) -> str:
    """The end of a caption: how many of these points are missing from a plot of this iteration; those that train
    nothing will never be in one."""
    trained = [point for point in points if any(run.wanted for run in point.runs)]
    missing = sum(iteration not in point.iterations for point in trained)
    are = "is" if missing == 1 else "are"
    return f" {missing} of {len(trained)} points {are} not there yet." if missing else ""


def said(found: Comparison, point: Point, iteration: int) -> str:
    """Of a mark: which point, and its numbers."""
    win = point.win(iteration)
    number = f": win rate {win.mean:.3f} [{win.low:.3f}, {win.high:.3f}]" if win else ""
    return f"{found.name(point)}, iteration {iteration}{number}"
