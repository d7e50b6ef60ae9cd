"""Lines: win rate with its interval, length and KL, against each varied key and by iteration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from src.reporting.compare.axes import (
    MEASURES,
    Ending,
    Measure,
    Scale,
    behind,
    common_iteration,
    label_ends,
    reference,
    said,
    scale_of,
    set_x,
)
from src.reporting.compare.gather import WIN
from src.reporting.compare.palette import LEVELS, QUIET, scale, word
from src.reporting.compare.points import Comparison, Point
from src.reporting.compare.svg import COLUMN, Picture, belongs, picture
from src.reporting.compare.varied import in_order, label, numeric, order, shown, sign, told

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMED = 6
"""Lines that have a colour and a label each."""
SIZE = (COLUMN, 2.5)


class Line(NamedTuple):
    """Points joined in a plot, each at an iteration."""

    name: str
    colour: str
    marks: list[tuple[Point, int]]
    labelled: bool = True


def by_key(found: Comparison, key: str) -> list[Picture]:
    """Against a key: a line an iteration, or, where other keys vary too, a line for their values."""
    lines, scale = _lines(found, key), scale_of([point.values[key] for point in found.points])
    name = found.names[key]
    t = common_iteration(found)
    when, missing = (f", iteration {t}", behind(found.points, t)) if len(found.axes) > 1 else ("", "")
    drawn = (_panel(found, measure, key, scale, lines, when) for measure in MEASURES)
    return [
        picture(figure, f"{measure.file}_by_{_file(name)}", f"{measure.title} against {label(name)}{when}.{missing}")
        for measure, figure in zip(MEASURES, drawn, strict=True)
    ]


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _panel(found: Comparison, measure: Measure, key: str, scale: Scale, lines: list[Line], when: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(SIZE, layout="constrained")
    panel = figure.add_subplot()
    endings: list[Ending] = []
    for number, line in enumerate(lines):
        marks = [(point, t) for point, t in line.marks if _value(point, t, measure) is not None]
        if not marks:
            continue
        x = [scale.dodged(point.values[key], number, len(lines)) for point, _ in marks]
        y = [_value(point, t, measure) or 0.0 for point, t in marks]
        _draw(panel, found, measure, x, y, marks, line.colour, joined=not scale.words)
        if line.labelled and line.name:
            endings.append(Ending(y[-1], line.name, line.colour, None))
    set_x(panel, scale, found.names[key])
    panel.set_ylabel(measure.label)
    panel.set_title(f"{measure.title}{when}")
    label_ends(panel, [*endings, *reference(panel, measure, found)])
    return figure


def _draw(
    panel: Axes,
    found: Comparison,
    measure: Measure,
    x: list[float],
    y: list[float],
    marks: list[tuple[Point, int]],
    colour: str,
    joined: bool = True,
    width: float = 1.3,
) -> None:
    """A line with a mark a point; win rates have their interval."""
    if joined:
        panel.plot(x, y, color=colour, lw=width, zorder=2)
    for place, height, (point, t) in zip(x, y, marks, strict=True):
        tip = said(found, point, t)
        win = point.win(t)
        if measure.name == WIN and win and colour != QUIET:
            (bar,) = panel.plot(
                [place, place], [win.low, win.high], color=colour, lw=width * 0.75, alpha=0.75, zorder=3
            )
            belongs(bar, point.number, tip)
        (mark,) = panel.plot(place, height, color=colour, marker="o", ms=4, mew=0, zorder=4)
        belongs(mark, point.number, tip)


def _value(point: Point, iteration: int, measure: Measure) -> float | None:
    return point.mean(iteration, measure.name)


def _lines(found: Comparison, key: str) -> list[Line]:
    others = [axis for axis in found.axes if axis != key]
    if not others:
        return list(_by_iteration_lines(found))
    last = common_iteration(found)
    groups: dict[str, list[Point]] = {}
    for point in sorted(found.points, key=lambda point: [order(point.values[axis]) for axis in others]):
        groups.setdefault(told(found.names, {axis: point.values[axis] for axis in others}), []).append(point)
    marks = [[(point, last) for point in sorted(group, key=lambda point: order(point.values[key]))]
             for group in groups.values()]  # fmt: skip
    if len(groups) <= MOST_NAMED and (len(others) > 1 or not numeric([p.values[others[0]] for p in found.points])):
        return [Line(name, word(i), group) for i, (name, group) in enumerate(zip(groups, marks, strict=True))]
    return _shaded(found, others[0], marks)


def _by_iteration_lines(found: Comparison) -> Iterator[Line]:
    (key,) = found.axes
    points = sorted(found.points, key=lambda point: order(point.values[key]))
    for number, t in enumerate(found.iterations):
        marks = [(point, t) for point in points if t in point.iterations]
        yield Line(f"iteration {t}", _step(number, len(found.iterations)), marks)


def _shaded(found: Comparison, second: str, marks: list[list[tuple[Point, int]]]) -> list[Line]:
    """Lines coloured by the order of their value of a second key; each value is named once."""
    values = in_order([point.values[second] for point in found.points])
    lines: list[Line] = []
    named: set[str] = set()
    for group in reversed(marks):
        value = group[0][0].values[second]
        colour = _step(values.index(value), len(values))
        name = f"{sign(found.names[second])} {shown(value)}"
        lines.append(Line(name, colour, group, name not in named))
        named.add(name)
    return lines[::-1]


def _step(number: int, count: int) -> str:
    """Of the scale: ordered lines grow in contrast."""
    return scale()[round(number / max(1, count - 1) * (LEVELS - 1))].light if count > 1 else word(0)


def by_iteration(found: Comparison) -> list[Picture]:
    """Win rate, length and KL by iteration, a line a point; of many points the best three have colours."""
    drawn = [(measure, _iterations(found, measure)) for measure in MEASURES]
    told_apart = "" if len(found.points) <= MOST_NAMED else " The best three points have colours."
    return [
        picture(figure, f"{measure.file}_by_iteration", f"{measure.title} by iteration, a line a point.{told_apart}")
        for measure, figure in drawn
    ]


def _iterations(found: Comparison, measure: Measure) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(SIZE, layout="constrained")
    panel = figure.add_subplot()
    colours = point_colours(found)
    endings: list[Ending] = []
    count = len(found.points)
    for number, point in enumerate(sorted(found.points, key=lambda point: colours[point.number] != QUIET)):
        marks = [(point, t) for t in point.iterations if _value(point, t, measure) is not None]
        y = [_value(point, t, measure) or 0.0 for _, t in marks]
        if not marks:
            continue
        shift = (number - (count - 1) / 2) * min(0.02, 0.15 / count)
        quiet = colours[point.number] == QUIET
        _draw(panel, found, measure, [t + shift for _, t in marks], y, marks, colours[point.number],
              width=0.8 if quiet else 1.5)  # fmt: skip
        if not quiet:
            endings.append(Ending(y[-1], found.name(point), colours[point.number], point.number))
    panel.set(xticks=found.iterations, xlabel="iteration", ylabel=measure.label, title=f"{measure.title} by iteration")
    panel.margins(x=0.06)
    label_ends(panel, [*endings, *reference(panel, measure, found)])
    return figure


def point_colours(found: Comparison) -> dict[int, str]:
    """By the number of the point: one each for a few, else for the three whose best iteration is best."""
    if len(found.points) <= MOST_NAMED:
        return {point.number: word(i) for i, point in enumerate(found.points)}
    wins = {
        point.number: max((win.mean for t in point.iterations if (win := point.win(t))), default=0.0)
        for point in found.points
    }
    best = sorted(wins, key=lambda number: -wins[number])[:3]
    return {number: word(best.index(number)) if number in best else QUIET for number in wins}
