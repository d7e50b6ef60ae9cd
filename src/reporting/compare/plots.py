"""Every picture of a comparison, in the order in which the page shows them."""

from __future__ import annotations

from typing import NamedTuple

from src.reporting.compare.fields import heat_maps, maps_left_out, parallel
from src.reporting.compare.lines import by_iteration, by_key
from src.reporting.compare.points import Comparison
from src.reporting.compare.scatter import scatters
from src.reporting.compare.svg import STYLE, Picture
from src.reporting.compare.varied import label


class Section(NamedTuple):
    title: str
    note: str
    pictures: list[Picture]


def draw(found: Comparison) -> list[Section]:
    """Nothing of matplotlib's own state is left changed."""
    from matplotlib import rc_context

    if not found.iterations:  # benchmarks of start policies alone
        return []
    with rc_context(STYLE):
        return [section for section in _sections(found) if section.pictures]


def _bars(found: Comparison) -> str:
    """By what there is at an iteration: a point of several seeds may have finished one."""
    wins = [win for point in found.points for t in point.iterations if (win := point.win(t))]
    over = {win.over for win in wins}
    if len(over) == 2:
        return "Bars are intervals over seeds; over held-out prompts where a point has one seed there."
    return f"Bars are intervals over {'seeds' if 'seeds' in over else 'held-out prompts'}."


def _sections(found: Comparison) -> list[Section]:
    bars = _bars(found)
    maps, more = heat_maps(found), maps_left_out(found)
    only = f" The first {len(maps)} of {len(maps) + more} are drawn." if more else ""
    return [
        *(Section(f"Against {label(found.names[key])}", bars, by_key(found, key)) for key in found.axes),
        Section("Two keys at a time", f"Hatched: no such point, or not yet there.{only}", maps),
        Section("All keys at once", "", [parallel(found)] if len(found.points) > 1 else []),
        Section("By iteration", bars, by_iteration(found) if len(found.iterations) > 1 else []),
        Section(
            "What the wins were paid with",
            "A win rate that comes with longer answers or a far walk from the base is a cheaper one.",
            scatters(found),
        ),
    ]
