"""Win rate against length and KL: what a policy paid for its wins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.reporting.compare.axes import MEASURES, Measure, base_value, cut, said
from src.reporting.compare.lines import SIZE, point_colours
from src.reporting.compare.palette import INK, QUIET, SURFACE
from src.reporting.compare.points import Comparison, Point
from src.reporting.compare.svg import Picture, belongs, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLACES = [(dx, dy, "left" if dx > 0 else "right", "center") for dy in (0, 8, -8, 15, -15, 22) for dx in (6, -6)]
"""Of a label beside its mark: offset in points, alignment. The first that is free is taken."""


def scatters(found: Comparison) -> list[Picture]:
    """A mark a point and iteration, joined in the order of the iterations; filled at the last."""
    return [
        picture(
            _scatter(found, measure),
            f"win_rate_against_{measure.file}",
            f"Win rate over the base against {measure.label}: the way of each point over its iterations, "
            "beginning at the base; the last is filled.",
        )
        for measure in MEASURES[1:]
        if any(point.mean(t, measure.name) is not None for point in found.points for t in point.iterations)
    ]


def _scatter(found: Comparison, measure: Measure) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(SIZE, layout="constrained")
    panel = figure.add_subplot()
    start, colours = base_value(measure, found), point_colours(found)
    ends: list[tuple[float, float, Point]] = []
    marks = [(start, 0.5)] if start is not None else []
    for point in sorted(found.points, key=lambda point: colours[point.number] != QUIET):
        way = [
            (x, win.mean, t)
            for t in point.iterations
            if (x := point.mean(t, measure.name)) is not None and (win := point.win(t))
        ]
        if way:
            _way(panel, found, point, way, start, colours[point.number])
            ends.append((way[-1][0], way[-1][1], point))
            marks += [(x, y) for x, y, _ in way]
    if start is not None:
        panel.plot(start, 0.5, marker="D", ms=4.5, color=INK, mew=0, zorder=5)
        panel.annotate("base", (start, 0.5), xytext=(0, -5), textcoords="offset points", ha="center", va="top",
                       size=7, color=INK)  # fmt: skip
    panel.set(xlabel=measure.label, ylabel="win rate over the base", title=f"Win rate against {measure.short}")
    panel.margins(0.1)
    named = [(x, y, point) for x, y, point in ends if colours[point.number] != QUIET]
    _names(figure, panel, found, named, marks, colours)
    return figure


def _way(
    panel: Axes,
    found: Comparison,
    point: Point,
    way: list[tuple[float, float, int]],
    start: float | None,
    colour: str,
) -> None:
    x, y = [place for place, _, _ in way], [win for _, win, _ in way]
    quiet = colour == QUIET
    begin = ([start], [0.5]) if start is not None else ([], [])
    (line,) = panel.plot(begin[0] + x, begin[1] + y, color=colour, lw=0.7 if quiet else 1.1, alpha=0.8, zorder=2)
    belongs(line, point.number, found.name(point))
    for place, win, t in way:
        last = t == way[-1][2]
        (mark,) = panel.plot(place, win, marker="o", ms=4.5 if last else 3.5, color=colour, zorder=3 + (not quiet),
                             mfc=colour if last else SURFACE, mew=0.9)  # fmt: skip
        belongs(mark, point.number, said(found, point, t))


def _names(
    figure: Figure,
    panel: Axes,
    found: Comparison,
    named: list[tuple[float, float, Point]],
    marks: list[tuple[float, float]],
    colours: dict[int, str],
) -> None:
    """Each beside its mark, on the side where it covers the fewest marks and names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    taken = [tuple(panel.transData.transform(mark)) for mark in marks]
    boxes = []
    inside = panel.get_window_extent(renderer)
    for x, y, point in sorted(named, key=lambda entry: -entry[1]):
        tries = []
        for dx, dy, ha, va in PLACES:
            text = panel.annotate(cut(found.name(point)), (x, y), xytext=(dx, dy), textcoords="offset points", ha=ha,
                                  va=va, size=7, color=colours[point.number], zorder=6)  # fmt: skip
            text.set_in_layout(False)
            box = text.get_window_extent(renderer)
            covered = sum(box.overlaps(other) for other in boxes) * 9 + sum(box.contains(*mark) for mark in taken)
            outside = box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1
            tries.append((covered + 4 * outside, len(tries), text, box))
        best = min(tries, key=lambda entry: entry[:2])
        for entry in tries:
            if entry is not best:
                entry[2].remove()
        boxes.append(best[3])
        belongs(best[2], point.number, said(found, point, point.iterations[-1]))
