"""Figures as files: PNG for papers, SVG for the page, whose marks belong to points and whose colours to the theme."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

from src.reporting.compare.palette import GRID, INK, MUTED, SURFACE, themed

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

COLUMN = 3.4
"""Inches: a column of a paper."""
PAGE = 7.0
"""Both columns."""
DPI = 200
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_MARK = re.compile(r"mark-(\d+)-")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "hatch.linewidth": 0.6,
    "figure.facecolor": SURFACE,
    "savefig.facecolor": SURFACE,
    "svg.fonttype": "none",
    "svg.hashsalt": "compare",
}


class Picture(NamedTuple):
    """A drawing, ready to be written."""

    name: str
    """Of the PNG, without its ending, and the beginning of all ids in the SVG."""
    caption: str
    png: bytes
    svg: str
    wide: bool


def belongs(artist: Artist, point: int, told: str) -> None:
    """The mark of a point; `told` is what it says when it is pointed at."""
    artist.set_gid(f"mark-{point}-{told}")


def picture(figure: Figure, name: str, caption: str) -> Picture:
    """Of a figure that was drawn under STYLE, which must still be in force."""
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Picture(
        name, caption, png.getvalue(), inline(svg.getvalue(), name, caption), figure.get_figwidth() > COLUMN + 1
    )


def inline(text: str, name: str, caption: str) -> str:
    """An SVG file as an element of a page: ids of its own, marks as classes, colours as variables."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):  # a style would be the whole page's
                parent.remove(child)
    for element in list(root.iter()):
        _own(element, name)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": caption}
    return ElementTree.tostring(root, encoding="unicode")


def _own(element: ElementTree.Element, name: str) -> None:
    found = element.attrib.pop("id", None)
    mark = _MARK.match(found) if found else None
    if found and mark:
        element.set("class", f"mark p{mark[1]}")
        title = ElementTree.Element(f"{{{_SVG}}}title")
        title.text = found[mark.end() :]
        element.insert(0, title)
    elif found and not re.fullmatch(r"(text|patch|line2d|axes|figure|matplotlib\.axis|xtick|ytick)_\d+", found):
        element.set("id", f"{name}-{found}")
    for key, value in list(element.attrib.items()):
        if key in ("style", "fill", "stroke"):
            value = themed(value)
            element.set(key, value)
        if key in (f"{{{_XLINK}}}href", "href"):
            element.set(key, value.replace("#", f"#{name}-", 1))
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{name}-"))
