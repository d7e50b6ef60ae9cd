"""The pictures of a comparison, in the order in which the page shows them."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps, rcParams, style
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from src.reporting.compare.points import Comparison, Point, described, in_order, numeric, order, short
from src.reporting.compare.read import WIN, Table, Value

COLUMN = 3.4
"""Inches: a column of a paper."""
STYLE = Path(__file__).with_name("plots.mplstyle")
LABELS = {"eta": "η (nats)", "lr": "peak learning rate", "K": "answers per prompt, K"}
"""Key -> the label of its axis."""
PAID = {"tokens": "answer length (tokens)", "kl_per_token": "KL to the base (nats/token)"}
"""Number that a win may be paid with -> the label of its axis."""
LONGEST = 22
"""Letters of a name in a picture."""
MOST_MAPS = 12
MOST_NAMED = 6
"""Lines that have a colour and a name each."""
QUIET = "C6"
"""The colour of points that are not among the best three."""

# High wins stand out from the page.
colormaps.register(ListedColormap(colormaps["viridis"](np.linspace(0.74, 0.06, 256)), "compare"), force=True)


class Picture(NamedTuple):
    name: str
    """The name of the PNG, without its ending."""
    caption: str
    png: bytes
    svg: str
    """As a data URI, which a page has in it."""


class Section(NamedTuple):
    title: str
    note: str
    pictures: list[Picture]


Line = tuple[str, Any, Table]
"""Marks joined in a plot: a name, which is empty where the legend has none, a colour, and the marks."""


def draw(comparison: Comparison) -> list[Section]:
    """Draw all pictures; none where only start policies were evaluated."""
    if not comparison.iterations:
        return []
    marks, last = _marks(comparison), comparison.common_iteration
    missing = sum(bool(last not in point.iterations) for point in comparison.points)
    here = f" {missing} of {len(comparison.points)} points have not come to iteration {last}." if missing else ""
    bars = f"Bars are intervals over {' or '.join(sorted(set(marks['over']), reverse=True))}.{here}"
    maps = list(_maps(comparison))
    left_out = f" The first {MOST_MAPS} of {len(maps)} are drawn." if len(maps) > MOST_MAPS else ""
    by_iteration = [_against(comparison, marks, "iteration", lambda: _named(comparison, marks))]
    by_key = [_against(comparison, marks, key, partial(_by_key, comparison, marks, key)) for key in comparison.axes]
    paid = [_scatter(comparison, marks, key) for key in PAID if marks[key].notna().any()]
    sections = [
        Section("Win rate", bars, [*by_key, *(by_iteration if len(comparison.iterations) > 1 else [])]),
        Section("Two keys at a time", f"Hatched: no such point, or not yet there.{left_out}",
                [_heat_map(comparison, marks, *each) for each in maps[:MOST_MAPS]]),
        Section("What the wins were paid with",
                "A win rate that comes with longer answers or a far walk from the base is a cheaper one.", paid),
    ]  # fmt: skip
    return [section for section in sections if section.pictures]


def _picture(name: str, caption: str, draw: Callable[[], Figure]) -> Picture:
    png, svg = io.BytesIO(), io.BytesIO()
    with style.context(STYLE):
        figure = draw()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", metadata={"Software": None})
    uri = f"data:image/svg+xml;base64,{b64encode(svg.getvalue()).decode()}"
    return Picture("".join(c if c.isalnum() else "_" for c in name), caption, png.getvalue(), uri)


def _marks(comparison: Comparison) -> Table:
    """Return one row per point and iteration: the point, its values and numbers, the win rate's interval."""
    rows = [
        {"point": point, "number": point.number, "iteration": t, **point.values}
        | {key: point.mean(t, key) for key in PAID}
        | {WIN: win.mean, "below": win.mean - win.low, "above": win.high - win.mean, "over": win.over}
        for point in comparison.points
        for t in point.iterations
        if (win := point.win(t))
    ]
    return pd.DataFrame(rows, dtype=object).astype(dict.fromkeys([WIN, *PAID, "below", "above"], float))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _label(comparison: Comparison, key: str) -> str:
    name = comparison.names.get(key, key)
    return LABELS.get(name, name)


def _legend(figure: Figure, panel: Axes) -> None:
    """Name the lines below the plot; of the many shades of a scale, some."""
    handles, labels = panel.get_legend_handles_labels()
    step = 1 + len(labels) // 10
    if labels:
        columns = min(3, 52 // (max(map(len, labels)) + 6))
        figure.legend(handles[::step], labels[::step], loc="outside lower left", ncols=columns)
        figure.set_figheight(figure.get_figheight() + 0.16 * -(-len(labels[::step]) // columns))


def _set_x_ticks(panel: Axes, places: Sequence[float], values: Sequence[Value]) -> None:
    texts = [_cut(short(value)) for value in values]
    turned: Any = {"rotation": 30, "ha": "right"} if sum(map(len, texts)) > 40 else {}
    panel.set_xticks(places, texts, **turned)


# Lines ---------------------------------------------------------------------------------------------------------------


def _against(comparison: Comparison, marks: Table, key: str, lines: Callable[[], list[Line]]) -> Picture:
    """Draw the win rate against a key of the points, or against `iteration`."""
    values = in_order(marks[key].tolist())
    numbers = numeric(values)
    places = {value: float(value or 0) if numbers else float(i) for i, value in enumerate(values)}
    log = numbers and min(places.values()) > 0 and max(places.values()) > 10 * min(places.values())
    label, several = _label(comparison, key), key != "iteration" and len(comparison.axes) > 1

    def figure() -> Figure:
        figure = Figure((COLUMN, 2.3))
        panel, drawn = figure.add_subplot(), lines()
        step = min(4.0, 14.0 / len(drawn)) if any(len(marks) > 1 for _, _, marks in drawn) else 0.0
        for number, (name, colour, marks) in enumerate(drawn):
            marks = marks.assign(x=marks[key].map(places.get).astype(float)).sort_values("x")
            quiet = isinstance(colour, str) and colour == QUIET
            reach = marks[["below", "above"]].to_numpy().T * (0.0 if quiet else 1.0)
            shift = (number - (len(drawn) - 1) / 2) * step
            panel.errorbar(marks["x"], marks[WIN], reach, fmt="o-" if numbers else "o", color=colour, elinewidth=0.9,
                           lw=0.8 if quiet else 1.4, mew=0, label=_cut(name) or None,
                           transform=offset_copy(panel.transData, figure, x=shift, units="points"))  # fmt: skip
            for end in (marks[WIN] - reach[0], marks[WIN] + reach[1]):  # what is shifted does not count by itself
                panel.update_datalim(np.column_stack([marks["x"], end]))
        panel.margins(x=0.08)
        panel.axhline(0.5, color=rcParams["axes.edgecolor"], lw=0.9, ls=(0, (4, 2)), zorder=1, label="base")
        when = f", iteration {comparison.common_iteration}" if several else ""
        panel.set(xlabel=label, ylabel="win rate over the base", title=f"Win rate{when}")
        if log:
            panel.set_xscale("log")
            panel.minorticks_off()
        if len(places) <= 7 or not numbers:
            _set_x_ticks(panel, list(places.values()), values)
        else:
            panel.xaxis.set_major_formatter(lambda value, _: short(float(value)))
        _legend(figure, panel)
        return figure

    name = comparison.names.get(key, key)
    return _picture(f"win_rate_by_{name}", f"Win rate over the base against {label}.", figure)


def _by_key(comparison: Comparison, marks: Table, key: str) -> list[Line]:
    """Join the marks of an iteration where no other key varies, else those whose other keys are equal."""
    others = [axis for axis in comparison.axes if axis != key]
    if others:
        marks = marks[marks["iteration"] == comparison.common_iteration]
    keys = others or ["iteration"]
    entries = [dict(zip(keys, values, strict=True)) for values in marks[keys].itertuples(index=False, name=None)]
    marks = marks.assign(
        line=[described(comparison.names, entry) for entry in entries],
        place=[tuple(map(order, entry.values())) for entry in entries],
    )
    groups = [(str(name), group) for name, group in marks.sort_values("place").groupby("line", sort=False)]
    ordered = len(keys) == 1 and numeric(marks[keys[0]].tolist())
    shaded = len(groups) > MOST_NAMED or (ordered and len(groups) > 1)
    shades = colormaps[rcParams["image.cmap"]](np.linspace(0, 1, len(groups)))
    colours = list(shades) if shaded else [f"C{i}" for i in range(len(groups))]
    return [(name, colour, group) for (name, group), colour in zip(groups, colours, strict=True)]


def _named(comparison: Comparison, marks: Table) -> list[Line]:
    """Give each of a few points a name and a colour, else the best three; the others come first, to lie below."""
    points = [point for point in comparison.points if point.iterations]
    best = points if len(points) <= MOST_NAMED else sorted(points, key=lambda point: -point.best[0])[:3]
    others = [point for point in points if point not in best]
    named = [("" if i else "others", QUIET, point) for i, point in enumerate(others)]
    named += [(comparison.name(point), f"C{i}", point) for i, point in enumerate(best)]
    return [(name, colour, marks[marks["number"] == point.number]) for name, colour, point in named]


def _scatter(comparison: Comparison, marks: Table, key: str) -> Picture:
    """Draw win rate against length or KL: a mark a point and iteration, joined in their order, filled at the last."""
    bases = {step.numbers.get(f"base_{key}") for _, _, step in comparison.rows if step}
    base = 0.0 if key == "kl_per_token" else bases.pop() if len(bases) == 1 else None

    def figure() -> Figure:
        figure = Figure((COLUMN, 2.6))
        panel = figure.add_subplot()
        for name, colour, way in _named(comparison, marks.dropna(subset=[key])):
            x, y = way[key].tolist(), way[WIN].tolist()
            start = ([base], [0.5]) if base is not None else ([], [])
            panel.plot(start[0] + x, start[1] + y, color=colour, lw=0.8 if colour == QUIET else 1.2)
            panel.plot(x, y, "o", color=colour, mfc=rcParams["figure.facecolor"])
            panel.plot(x[-1:], y[-1:], "o", ms=5, color=colour, label=_cut(name) or None)
        if base is not None:
            panel.plot(base, 0.5, "D", ms=5, color=rcParams["text.color"], label="base")
        title = "Win rate against KL" if key == "kl_per_token" else "Win rate against length"
        panel.set(xlabel=PAID[key], ylabel="win rate over the base", title=title)
        panel.locator_params(nbins=6)
        _legend(figure, panel)
        return figure

    way = "the way of each point over its iterations, beginning at the base; the last is filled."
    return _picture(f"win_rate_against_{key}", f"Win rate over the base against {PAID[key]}: {way}", figure)


# Heat maps -----------------------------------------------------------------------------------------------------------


def _maps(comparison: Comparison) -> Iterator[tuple[str, str, str, list[Point]]]:
    """Find the pairs of keys, down and across, whose points fill a third of a grid, for each choice of the others."""
    for down, across in combinations(comparison.axes, 2):
        groups: dict[str, list[Point]] = {}
        for point in comparison.points:
            rest = {key: value for key, value in point.values.items() if key not in (down, across)}
            groups.setdefault(described(comparison.names, rest), []).append(point)
        for rest, points in groups.items():
            rows, columns = (len({str(point.values[key]) for point in points}) for key in (down, across))
            if min(rows, columns) > 1 and len(points) * 3 > rows * columns:
                yield down, across, rest, points


def _heat_map(comparison: Comparison, marks: Table, down: str, across: str, rest: str, points: list[Point]) -> Picture:
    """Draw the win rates of a pair of keys at the common iteration, each with half its interval."""
    when = f"iteration {comparison.common_iteration}" + f", {rest}" * bool(rest)
    columns, rows = (in_order([point.values[key] for point in points]) for key in (across, down))
    low, high = marks[WIN].min(), marks[WIN].max()

    def figure() -> Figure:
        figure = Figure((COLUMN, min(5.0, 1.2 + 0.42 * len(rows))))
        panel = figure.add_subplot()
        panel.patch.set(hatch="/////", edgecolor=rcParams["hatch.color"], lw=0)
        grid, colours = np.full((len(rows), len(columns)), np.nan), colormaps[rcParams["image.cmap"]]
        for point in points:
            if win := point.win(comparison.common_iteration):
                i, j = columns.index(point.values[across]), rows.index(point.values[down])
                grid[j, i] = win.mean
                red, green, blue = (part**2.2 for part in colours((win.mean - low) / ((high - low) or 1.0))[:3])
                ink = "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else "white"
                text = f"{win.mean:.3f}\n± {win.half:.3f}".replace("0.", ".")
                size = 7 if len(columns) <= 5 else 5.5
                panel.text(i + 0.5, j + 0.5, text, size=size, ha="center", va="center", color=ink)
        panel.pcolormesh(np.ma.masked_invalid(grid), vmin=low, vmax=high, edgecolors=rcParams["figure.facecolor"], lw=2)
        _set_x_ticks(panel, [i + 0.5 for i in range(len(columns))], columns)
        panel.set_yticks(np.arange(len(rows)) + 0.5, [_cut(short(value)) for value in rows])
        panel.set(xlabel=_label(comparison, across), ylabel=_label(comparison, down), title=f"Win rate, {when}")
        panel.grid(False)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        return figure

    names = [comparison.names[key] for key in (down, across)]
    file = f"heat_{'_'.join(names)}" + ("" if len(comparison.axes) == 2 else f"_{points[0].number}")
    return _picture(file, f"Win rate over the base by {' and '.join(names)}, {when}: mean ± half its interval.", figure)
