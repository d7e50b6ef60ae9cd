"""Heat maps over pairs of keys, and parallel coordinates over all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, islice
from typing import TYPE_CHECKING, NamedTuple

from src.reporting.compare.axes import MEASURES, Scale, behind, common_iteration, cut, said, scale_of
from src.reporting.compare.gather import WIN
from src.reporting.compare.palette import INK, LEVELS, MUTED, QUIET, SURFACE, level, on_scale, scale
from src.reporting.compare.points import Comparison, Estimate, Point
from src.reporting.compare.svg import COLUMN, PAGE, Picture, belongs, picture
from src.reporting.compare.varied import in_order, label, numeric, shown, told

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_MAPS = 12


class _Map(NamedTuple):
    """What a heat map is of."""

    across: str
    down: str
    rest: str
    """Values of the other keys, in words."""
    points: list[Point]


def heat_maps(found: Comparison) -> list[Picture]:
    """For each pair of keys, at the common iteration; one for each choice of the other keys, the first few."""
    return [_heat_map(found, each) for each in islice(_maps(found), MOST_MAPS)]


def maps_left_out(found: Comparison) -> int:
    """How many there are beyond those that are drawn."""
    return max(0, sum(1 for _ in _maps(found)) - MOST_MAPS)


def _maps(found: Comparison) -> Iterator[_Map]:
    """Those with two values each way."""
    for down, across in combinations(found.axes, 2):
        if numeric([p.values[down] for p in found.points]) and not numeric([p.values[across] for p in found.points]):
            down, across = across, down
        groups: dict[str, list[Point]] = {}
        for point in found.points:
            rest = {key: value for key, value in point.values.items() if key not in (down, across)}
            groups.setdefault(told(found.names, rest), []).append(point)
        for rest, points in groups.items():
            if len({str(p.values[down]) for p in points}) > 1 and len({str(p.values[across]) for p in points}) > 1:
                yield _Map(across, down, rest, points)


def _heat_map(found: Comparison, shape: _Map) -> Picture:
    from matplotlib.figure import Figure

    across, down, rest, points = shape
    last = common_iteration(found)
    when = f"iteration {last}" + f", {rest}" * bool(rest)
    columns, rows = (in_order([point.values[key] for point in found.points]) for key in (across, down))
    figure = Figure((COLUMN, min(5.0, 1.1 + 0.42 * len(rows))), layout="constrained")
    panel = figure.add_subplot()
    low, high = win_range(found)
    cells = {(point.values[across], point.values[down]): point for point in points}
    for i, value in enumerate(columns):
        for j, other in enumerate(rows):
            point = cells.get((value, other))
            win = point.win(last) if point else None
            if point and win:
                _cell(
                    panel, i, j, win, level(win.mean, low, high), point.number, said(found, point, last), len(columns)
                )
            else:
                _missing(panel, i, j)
    panel.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, len(rows) - 0.5))
    panel.set_xticks(range(len(columns)), [cut(shown(value)) for value in columns])
    panel.set_yticks(range(len(rows)), [cut(shown(value)) for value in rows])
    panel.set_xlabel(label(found.names[across]))
    panel.set_ylabel(label(found.names[down]))
    panel.set_title(f"Win rate, {when}")
    panel.grid(False)
    panel.tick_params(length=0)
    for spine in panel.spines.values():
        spine.set_visible(False)
    file = "heat_" + "_".join("".join(c if c.isalnum() else "_" for c in found.names[key]) for key in (down, across))
    number = min(point.number for point in points)
    caption = (
        f"Win rate over the base by {found.names[down]} and {found.names[across]}, {when}: mean ± half its interval."
        f"{behind(points, last)}"
    )
    return picture(figure, file if len(found.axes) == 2 else f"{file}_{number}", caption)


def _cell(panel: Axes, i: int, j: int, win: Estimate, step: int, number: int, tip: str, columns: int) -> None:
    from matplotlib.patches import Rectangle

    field = Rectangle((i - 0.485, j - 0.485), 0.97, 0.97, facecolor=scale()[step].light, lw=0)
    panel.add_patch(field)
    belongs(field, number, tip)
    ink = on_scale()[step].light
    small = columns > 5
    above = panel.text(i, j + 0.12, f"{win.mean:.3f}".lstrip("0"), ha="center", va="center", color=ink,
                       size=7 if small else 8.5)  # fmt: skip
    below = panel.text(i, j - 0.24, f"± {win.half:.3f}".replace("0.", "."), ha="center", va="center", color=ink,
                       size=5.5 if small else 6.5)  # fmt: skip
    for text in (above, below):
        belongs(text, number, tip)


def _missing(panel: Axes, i: int, j: int) -> None:
    from matplotlib.patches import Rectangle

    panel.add_patch(
        Rectangle((i - 0.485, j - 0.485), 0.97, 0.97, facecolor="none", edgecolor=QUIET, hatch="/////", lw=0)
    )


def win_range(found: Comparison) -> tuple[float, float]:
    """Of all win rates shown, for the scale of colours."""
    wins = [win.mean for point in found.points for t in point.iterations if (win := point.win(t))]
    return min(wins), max(wins)


class _Axis(NamedTuple):
    """Of parallel coordinates: where a point at an iteration lies in [0, 1], and what is written beside."""

    title: str
    place: Callable[[Point, int], float | None]
    ticks: list[tuple[float, str]]


def parallel(found: Comparison) -> Picture:
    """Every point at every iteration as a line over all keys and measures, coloured by its win rate."""
    from matplotlib.figure import Figure

    axes = [_key_axis(found, key) for key in found.axes]
    if len(found.iterations) > 1:
        numbers = scale_of([*found.iterations])
        axes.append(_Axis("iteration", lambda _, t: _within(numbers, float(t)), _ticks(numbers)))
    axes += [_measure_axis(found, measure.name, measure.title) for measure in reversed(MEASURES)]
    figure = Figure((PAGE, 2.9), layout="constrained")
    panel = figure.add_subplot()
    panel.set(xlim=(-0.15, len(axes) - 1 + 0.45), ylim=(-0.06, 1.06))
    panel.axis("off")
    for i, axis in enumerate(axes):
        _upright(panel, i, axis)
    _colour_key(panel, len(axes) - 1)
    low, high = win_range(found)
    marks = [(win.mean, point, t) for point in found.points for t in point.iterations if (win := point.win(t))]
    for win, point, t in sorted(marks, key=lambda mark: mark[0]):
        heights = [(i, height) for i, axis in enumerate(axes) if (height := axis.place(point, t)) is not None]
        (line,) = panel.plot(*zip(*heights, strict=True), color=scale()[level(win, low, high)].light, lw=1.3, zorder=3)
        belongs(line, point.number, said(found, point, t))
    return picture(figure, "parallel", "Every point at every iteration, a line each, coloured by its win rate.")


def _upright(panel: Axes, i: int, axis: _Axis) -> None:
    panel.plot([i, i], [0, 1], color=MUTED, lw=0.8, zorder=2)
    panel.text(i, 1.05, axis.title, ha="center", va="bottom", size=8, color=INK)
    for height, text in axis.ticks:
        panel.plot([i - 0.025, i], [height, height], color=MUTED, lw=0.8, zorder=2)
        panel.text(i - 0.045, height, text, ha="right", va="center", size=7, color=MUTED, zorder=5,
                   bbox={"facecolor": SURFACE, "lw": 0, "pad": 0.8, "alpha": 0.85})  # fmt: skip


def _colour_key(panel: Axes, i: int) -> None:
    """The steps of the scale, beside the axis of the win rate."""
    from matplotlib.patches import Rectangle

    for step, shade in enumerate(scale()):
        panel.add_patch(Rectangle((i + 0.03, step / LEVELS), 0.06, 1 / LEVELS, facecolor=shade.light, lw=0))


def _key_axis(found: Comparison, key: str) -> _Axis:
    numbers = scale_of([point.values[key] for point in found.points])
    return _Axis(
        cut(label(found.names[key])).replace(" ", "\n", 1)
        if len(label(found.names[key])) > 12
        else label(found.names[key]),
        lambda point, _: _within(numbers, numbers.place(point.values[key])),
        _ticks(numbers),
    )


def _measure_axis(found: Comparison, name: str, title: str) -> _Axis:
    values = [value for p in found.points for t in p.iterations if (value := p.mean(t, name)) is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    digits = 3 if name == WIN else 1 if high >= 10 else 4
    span = (high - low) or 1.0

    def place(point: Point, iteration: int) -> float | None:
        value = point.mean(iteration, name)
        return None if value is None else (value - low) / span if high > low else 0.5

    ticks = [(h, f"{low + h * (high - low):.{digits}f}") for h in (0.0, 0.5, 1.0)] if high > low else []
    units = {"tokens": "\n(tokens)", "kl_per_token": "\n(nats/token)", WIN: "\nover base"}
    return _Axis(title + units[name], place, ticks or [(0.5, f"{low:.{digits}f}")])


def _within(numbers: Scale, place: float) -> float:
    """Of the axis's length."""
    from math import log

    places = [numbers.place(value) for value in numbers.values]
    if len(places) == 1:
        return 0.5
    if numbers.log:
        place, places = log(place), [log(each) for each in places]
    return (place - min(places)) / (max(places) - min(places))


def _ticks(numbers: Scale) -> list[tuple[float, str]]:
    values: Sequence = numbers.values if len(numbers.values) <= 9 else [numbers.values[0], numbers.values[-1]]
    return [(_within(numbers, numbers.place(value)), cut(shown(value))) for value in values]
