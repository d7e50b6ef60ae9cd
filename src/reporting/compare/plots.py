"""Every picture of a comparison, in the order in which the page shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from src.reporting.compare.pictures import (
    COLUMN,
    MEASURES,
    PAGE,
    Drawn,
    Measure,
    Picture,
    cut,
    heights_of,
    ink_on,
    ladder,
    picture,
    scale,
    ticks,
)
from src.reporting.compare.points import Comparison
from src.reporting.compare.read import WIN
from src.reporting.compare.settings import described, in_order, numeric, order, shown

MOST_MAPS = 12
MOST_NAMED = 6
"""Lines that have a colour and a name each."""
QUIET = "C6"
"""The colour of points that are not among the best three."""


class Section(NamedTuple):
    title: str
    note: str
    pictures: list[Picture]


class Line(NamedTuple):
    """Marks joined in a plot."""

    name: str
    """Empty: none in the legend."""
    colour: Any
    marks: Any


def draw(comparison: Comparison) -> list[Section]:
    """Draws all pictures; none where only start policies were evaluated."""
    if not comparison.iterations:
        return []
    drawn, maps = Drawn(comparison), list(_maps(comparison))
    bars = f"Bars are intervals over {' or '.join(sorted(set(drawn.marks['over']), reverse=True))}."
    left_out = f" The first {MOST_MAPS} of {len(maps)} are drawn." if len(maps) > MOST_MAPS else ""
    paid = "A win rate that comes with longer answers or a far walk from the base is a cheaper one."
    sections = [
        *(Section(f"Against {drawn.label(key)}", bars, _by_key(drawn, key)) for key in comparison.axes),
        Section("Two keys at a time", f"Hatched: no such point, or not yet there.{left_out}",
                [_heat_map(drawn, *each) for each in maps[:MOST_MAPS]]),
        Section("All keys at once", "", [_parallel(drawn)] if len(comparison.points) > 1 else []),
        Section("By iteration", bars, _by_iteration(drawn) if len(comparison.iterations) > 1 else []),
        Section("What the wins were paid with", paid, _scatters(drawn)),
    ]  # fmt: skip
    return [section for section in sections if section.pictures]


# Lines ---------------------------------------------------------------------------------------------------------------


def _against(drawn: Drawn, key: str, lines: Callable[[], list[Line]], when: str, note: str) -> list[Picture]:
    """Draws each measure against a key of the points, or against `iteration`."""
    points, label = drawn.comparison.points, drawn.label(key)
    values = drawn.comparison.iterations if key == "iteration" else [point.values[key] for point in points]
    places, log = scale(values)
    words = not numeric(list(places))

    def figure(measure: Measure) -> Figure:
        figure, panel = _lines(drawn, measure, lines(), key, places, "" if words else "-")
        panel.set(xlabel=label, title=f"{measure.name}{when}")
        if log:
            panel.set_xscale("log")
            panel.minorticks_off()
        if not words:
            panel.xaxis.set_major_formatter(lambda value, _: shown(float(value)))
        if len(places) <= 7 or words:
            _set_x_ticks(panel, list(places.values()), ticks(list(places)))
        return figure

    name = drawn.names.get(key, key)
    return [
        picture(f"{measure.file}_by_{name}", f"{measure.name} against {label}{when}.{note}", partial(figure, measure))
        for measure in MEASURES
    ]


def _set_x_ticks(panel: Axes, places: Sequence[float], texts: list[str]) -> None:
    turned: Any = {"rotation": 30, "ha": "right"} if sum(map(len, texts)) > 40 else {}
    panel.set_xticks(places, texts, **turned)


def _by_key(drawn: Drawn, key: str) -> list[Picture]:
    several = len(drawn.comparison.axes) > 1
    when, note = (f", iteration {drawn.last}", drawn.missing(drawn.comparison.points)) if several else ("", "")
    return _against(drawn, key, lambda: _lines_by_key(drawn, key), when, note)


def _by_iteration(drawn: Drawn) -> list[Picture]:
    best = "" if len(drawn.comparison.points) <= MOST_NAMED else " The best three points have colours."
    return _against(drawn, "iteration", lambda: _named(drawn), "", best)


def _lines_by_key(drawn: Drawn, key: str) -> list[Line]:
    """Joins the marks of an iteration where no other key varies, else those whose other keys are equal."""
    others = [axis for axis in drawn.comparison.axes if axis != key]
    marks = drawn.at_last if others else drawn.marks
    entries = [({axis: point.values[axis] for axis in others} or {"iteration": t})
               for point, t in zip(marks["point"], marks["iteration"], strict=True)]  # fmt: skip
    marks = marks.assign(
        line=[described(drawn.names, entry) for entry in entries],
        place=[tuple(map(order, entry.values())) for entry in entries],
    )
    groups = [(str(name), group) for name, group in marks.sort_values("place").groupby("line", sort=False)]
    ordered = len(others) < 2 and numeric([value for entry in entries for value in entry.values()])
    shaded = len(groups) > MOST_NAMED or (ordered and len(groups) > 1)
    colours = list(ladder(np.linspace(0, 1, len(groups)))) if shaded else [f"C{i}" for i in range(len(groups))]
    return [Line(name, colour, group) for (name, group), colour in zip(groups, colours, strict=True)]


def _lines(
    drawn: Drawn, measure: Measure, lines: Sequence[Line], x: str, places: dict[Any, float], joined: str = "-"
) -> tuple[Figure, Axes]:
    """Draws lines with a mark a point, a little beside each other; win rates have their interval."""
    figure = Figure((COLUMN, 2.3))
    panel = figure.add_subplot()
    step = min(4.0, 14.0 / len(lines)) if any(len(line.marks) > 1 for line in lines) else 0.0
    for number, (name, colour, marks) in enumerate(lines):
        marks = marks.dropna(subset=[measure.key])
        marks = marks.assign(x=marks[x].map(places.get).astype(float)).sort_values("x")
        quiet = isinstance(colour, str) and colour == QUIET
        bars = 1.0 if measure.key == WIN and not quiet else 0.0
        low, high = bars * marks["below"], bars * marks["above"]
        shift = (number - (len(lines) - 1) / 2) * step
        panel.errorbar(marks["x"], marks[measure.key], [low, high], fmt=f"o{joined}", color=colour,
                       lw=0.8 if quiet else 1.4, elinewidth=0.9, mew=0, label=cut(name) or None,
                       transform=offset_copy(panel.transData, figure, x=shift, units="points"))  # fmt: skip
        for end in (marks[measure.key] - low, marks[measure.key] + high):  # what is shifted does not count by itself
            panel.update_datalim(np.column_stack([marks["x"], end]))
    panel.margins(x=0.08)
    if (base := drawn.base(measure)) is not None:
        panel.axhline(base, color=rcParams["axes.edgecolor"], lw=0.9, ls=(0, (4, 2)), zorder=1, label="base")
    panel.set_ylabel(measure.label)
    _legend(figure, panel)
    return figure, panel


def _legend(figure: Figure, panel: Axes) -> None:
    """Names the lines below the plot; of the many shades of a scale, some."""
    handles, labels = panel.get_legend_handles_labels()
    step = 1 + len(labels) // 10
    if labels:
        columns = min(3, 52 // (max(map(len, labels)) + 6))
        figure.legend(handles[::step], labels[::step], loc="outside lower left", ncols=columns)
        figure.set_figheight(figure.get_figheight() + 0.16 * -(-len(labels[::step]) // columns))


def _named(drawn: Drawn) -> list[Line]:
    """Gives each of a few points a name and a colour, else the best three; the others come first, to lie below."""
    points = [point for point in drawn.comparison.points if point.iterations]
    best = points if len(points) <= MOST_NAMED else sorted(points, key=lambda point: -point.best[0])[:3]
    others = [point for point in points if point not in best]
    lines = [("" if i else "others", QUIET, point) for i, point in enumerate(others)]
    lines += [(drawn.comparison.name(point), f"C{i}", point) for i, point in enumerate(best)]
    numbers = drawn.marks["number"]
    return [Line(name, colour, drawn.marks[numbers == point.number]) for name, colour, point in lines]


def _scatters(drawn: Drawn) -> list[Picture]:
    """Draws win rate against length and KL: a mark a point and iteration, joined in their order, filled at the last."""

    def figure(measure: Measure) -> Figure:
        figure = Figure((COLUMN, 2.6))
        panel = figure.add_subplot()
        base = drawn.base(measure)
        for name, colour, marks in _named(drawn):
            way = marks.dropna(subset=[measure.key])
            x, y = list(way[measure.key]), list(way[WIN])
            start = ([base], [0.5]) if base is not None else ([], [])
            panel.plot(start[0] + x, start[1] + y, color=colour, lw=0.8 if colour == QUIET else 1.2)
            panel.plot(x, y, "o", color=colour, mfc=rcParams["figure.facecolor"])
            panel.plot(x[-1:], y[-1:], "o", ms=5, color=colour, label=cut(name) or None)
        if base is not None:
            panel.plot(base, 0.5, "D", ms=5, color=rcParams["text.color"], label="base")
        title = measure.name if measure.name == "KL" else measure.name.lower()
        panel.set(xlabel=measure.label, ylabel="win rate over the base", title=f"Win rate against {title}")
        panel.locator_params(nbins=6)
        _legend(figure, panel)
        return figure

    way = "the way of each point over its iterations, beginning at the base; the last is filled."
    return [
        picture(f"win_rate_against_{measure.file}", f"Win rate over the base against {measure.label}: {way}",
                partial(figure, measure))
        for measure in MEASURES[1:]
        if drawn.marks[measure.key].notna().any()
    ]  # fmt: skip


# Heat maps and parallel coordinates ----------------------------------------------------------------------------------


def _maps(comparison: Comparison) -> Iterator[tuple[str, str, str, list[Any]]]:
    """Finds the pairs of keys, down and across, whose points fill a third of a grid, for each choice of the others."""
    for down, across in combinations(comparison.axes, 2):
        values = {key: [point.values[key] for point in comparison.points] for key in (down, across)}
        if numeric(values[down]) and not numeric(values[across]):
            down, across = across, down
        groups: dict[str, list[Any]] = {}
        for point in comparison.points:
            rest = {key: value for key, value in point.values.items() if key not in (down, across)}
            groups.setdefault(described(comparison.names, rest), []).append(point)
        for rest, points in groups.items():
            rows, columns = (len({str(point.values[key]) for point in points}) for key in (down, across))
            if min(rows, columns) > 1 and len(points) * 3 > rows * columns:
                yield down, across, rest, points


def _heat_map(drawn: Drawn, down: str, across: str, rest: str, points: list[Any]) -> Picture:
    """Draws the win rates of a pair of keys at the common iteration, each with half its interval."""
    when = f"iteration {drawn.last}" + f", {rest}" * bool(rest)
    columns, rows = (in_order([point.values[key] for point in points]) for key in (across, down))

    def figure() -> Figure:
        figure = Figure((COLUMN, min(5.0, 1.2 + 0.42 * len(rows))))
        panel = figure.add_subplot()
        panel.patch.set(hatch="/////", edgecolor=rcParams["hatch.color"], lw=0)
        grid = np.full((len(rows), len(columns)), np.nan)
        for point in points:
            if win := point.win(drawn.last):
                i, j = columns.index(point.values[across]), rows.index(point.values[down])
                grid[j, i] = win.mean
                text = f"{win.mean:.3f}\n± {win.half:.3f}".replace("0.", ".")
                panel.text(i + 0.5, j + 0.5, text, size=7 if len(columns) <= 5 else 5.5, ha="center", va="center",
                           color=ink_on(drawn.shade(win.mean)))  # fmt: skip
        low, high = drawn.marks[WIN].min(), drawn.marks[WIN].max()
        panel.pcolormesh(np.ma.masked_invalid(grid), vmin=low, vmax=high, edgecolors=rcParams["figure.facecolor"], lw=2)
        _set_x_ticks(panel, [i + 0.5 for i in range(len(columns))], ticks(columns))
        panel.set_yticks(np.arange(len(rows)) + 0.5, ticks(rows))
        panel.set(xlabel=drawn.label(across), ylabel=drawn.label(down), title=f"Win rate, {when}")
        panel.grid(False)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        return figure

    names = f"{drawn.names[down]} and {drawn.names[across]}"
    file = f"heat_{drawn.names[down]}_{drawn.names[across]}"
    file += "" if len(drawn.comparison.axes) == 2 else f"_{min(point.number for point in points)}"
    caption = f"Win rate over the base by {names}, {when}: mean ± half its interval.{drawn.missing(points)}"
    return picture(file, caption, figure)


def _parallel(drawn: Drawn) -> Picture:
    """Draws every point at every iteration as a line over all keys and measures, coloured by its win rate."""
    marks = drawn.marks.sort_values(WIN)
    keys = [*drawn.comparison.axes, *["iteration"] * (len(drawn.comparison.iterations) > 1)]
    columns = [(drawn.label(key), *heights_of(list(marks[key]))) for key in keys]
    for measure in reversed(MEASURES):
        low, high = marks[measure.key].min(), marks[measure.key].max()
        digits = 1 if high >= 10 else 3 if measure.key == WIN else 4
        named = [(part, f"{low + part * (high - low):.{digits}f}") for part in (0.0, 0.5, 1.0)]
        columns.append((measure.title, list((marks[measure.key] - low) / ((high - low) or 1.0)), named))

    def figure() -> Figure:
        figure = Figure((PAGE, 3.0))
        panel = figure.add_subplot()
        panel.set(xlim=(-0.3, len(columns) - 0.6), ylim=(-0.06, 1.06))
        panel.axis("off")
        for heights, shade in zip(
            zip(*(column[1] for column in columns), strict=True), drawn.shade(marks[WIN]), strict=True
        ):
            panel.plot(heights, color=shade, lw=1.3, zorder=3)
        for i, (title, _, named) in enumerate(columns):
            panel.plot([i, i], [0, 1], color=rcParams["axes.edgecolor"], lw=0.8)
            panel.text(i, 1.06, title.replace(" ", "\n", 1), ha="center", va="bottom")
            box = {"facecolor": rcParams["figure.facecolor"], "lw": 0, "pad": 0.8, "alpha": 0.85}
            for height, text in named:
                panel.text(i - 0.04, height, text, ha="right", va="center", size=7, zorder=5, bbox=box,
                           color=rcParams["xtick.color"])  # fmt: skip
        return figure

    return picture("parallel", "Every point at every iteration, a line each, coloured by its win rate.", figure)
