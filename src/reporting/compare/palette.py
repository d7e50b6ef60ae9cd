"""Colours: what a plot is drawn with on white, and what stands in their place on a page of either theme.

A plot is drawn once, with the light theme's colours. In its SVG each of them, being unlike all others, becomes a CSS
variable of the page, so that the same drawing follows the theme.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

LEVELS = 9
"""Of the scale for win rates."""


class Shade(NamedTuple):
    name: str
    light: str
    dark: str


ROLES = (
    Shade("surface", "#ffffff", "#15181c"),
    Shade("ink", "#1b1f24", "#e8eaed"),
    Shade("muted", "#56606b", "#a3adb8"),
    Shade("grid", "#e3e6ea", "#2b3138"),
    Shade("quiet", "#b4bcc5", "#59636e"),
)
WORDS = (
    Shade("word0", "#0072b2", "#56b4e9"),
    Shade("word1", "#c75300", "#f0904a"),
    Shade("word2", "#00805d", "#3fc9a0"),
    Shade("word3", "#a8497f", "#e39bc6"),
    Shade("word4", "#8a6d00", "#e6c229"),
    Shade("word5", "#4b53bc", "#a6abf5"),
)
"""Okabe and Ito's hues, told apart by the colour-blind; darkened until they can be read as text on white."""

INK, MUTED, GRID, QUIET, SURFACE = (
    next(shade.light for shade in ROLES if shade.name == name) for name in ("ink", "muted", "grid", "quiet", "surface")
)


def word(number: int) -> str:
    return WORDS[number % len(WORDS)].light


@lru_cache
def scale() -> list[Shade]:
    """Low to high: viridis, of equal steps to the eye, away from the page: darker on white, lighter on black."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    viridis = colormaps["viridis"]
    places = [level / (LEVELS - 1) for level in range(LEVELS)]
    return [
        Shade(f"scale{level}", to_hex(viridis(0.74 - 0.68 * x)), to_hex(viridis(0.42 + 0.58 * x)))
        for level, x in enumerate(places)
    ]


@lru_cache
def on_scale() -> list[Shade]:
    """Text on each step of the scale. All but equal blacks and whites, so that each has a name of its own."""
    return [
        Shade(f"on{level}", _text(shade.light, level), _text(shade.dark, level)) for level, shade in enumerate(scale())
    ]


def _text(background: str, level: int) -> str:
    """Black or white, whichever has more contrast."""
    return f"#00000{level + 1}" if luminance(background) > 0.18 else f"#fffff{level}"


def luminance(colour: str) -> float:
    """Relative, as WCAG has it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def level(value: float, low: float, high: float) -> int:
    """The step of the scale of a value between low and high."""
    return 0 if high <= low else max(0, min(LEVELS - 1, int((value - low) / (high - low) * LEVELS)))


def shades() -> list[Shade]:
    return [*ROLES, *WORDS, *scale(), *on_scale()]


def variables(dark: bool) -> str:
    """CSS that gives every shade its colour."""
    return " ".join(f"--{shade.name}: {shade.dark if dark else shade.light};" for shade in shades())


def themed(style: str) -> str:
    """The same style with variables for colours."""
    for shade in shades() if "#" in style else ():
        style = style.replace(shade.light, f"var(--{shade.name})")
    return style
