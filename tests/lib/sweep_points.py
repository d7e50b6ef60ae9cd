"""Points of sweeps as the command composes them."""

from __future__ import annotations

import contextlib
from functools import reduce
from typing import Any

from omegaconf import OmegaConf
from tiny_run import ROOT

from src.experiment.point import Point
from src.launch import compose


def points_of(*words: str) -> list[Point]:
    """Those that `python -m src.main *words` would carry out, composed and built."""
    with contextlib.chdir(ROOT):
        return compose.points_of(list(words))


def value(point: Point, key: str) -> str | float:
    """Of the run that would be carried out; the config that is written beside it says the same."""
    run, cfg = reduce(getattr, key.split("."), point.run), OmegaConf.select(point.cfg, key)
    found, told = (plain(choice(one)) for one in (run, cfg))
    assert found == told
    return found


def choice(found: Any) -> str:
    """A value, or what a choice of a group calls itself."""
    told = OmegaConf.to_container(found) if OmegaConf.is_config(found) else getattr(found, "__dict__", {})
    assert isinstance(told, dict)
    return str(told.get("name", told.get("kind", found)))


def plain(text: str) -> str | float:
    """1e-5 and 1e-05 are one value."""
    try:
        return float(text)
    except ValueError:
        return text
