"""The folder of a run: its settings and command, its links into the store, and whether its report is up to date.

`<run>/artifacts/it2/pairs` is a link to the artifact in the store.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from src.experiment.point import Point
from src.kernel.artifact import Node, place_of
from src.kernel.disk import remove, write_atomic
from src.kernel.store import Store

COMMAND, CONFIG, REPORT = "command.txt", "config.yaml", "report.md"
LINKS = "artifacts"
STARTED = re.compile(r"[+~]*(launcher[.=]|slurm@|(only|part)=|hardware\.(generation|ranking)\.workers=)")
"""Words that say who starts the stages, which of them, and in how many processes."""


def command(overrides: Sequence[str]) -> str:
    """Return the command as a shell takes it. It makes the same artifacts anywhere, whoever started the run."""
    return shlex.join(["python", "-m", "src.main", *(word for word in overrides if not STARTED.match(word))])


def write_command(point: Point, anew: bool = False) -> None:
    """Write what the run was asked for; remove a report of other settings, or with `anew` any."""
    folder = point.folder
    if anew or _read(folder / CONFIG) != point.settings:
        remove(folder / REPORT)
    write_atomic(folder / CONFIG, point.settings.encode())
    write_atomic(folder / COMMAND, f"{command(point.overrides)}\n".encode())


def is_reported(point: Point) -> bool:
    """Say whether the run folder has a report of the iterations and benchmarks that the point asks for."""
    folder = point.folder
    settings = _read(folder / CONFIG)
    if settings is None or not all((folder / name).exists() for name in (COMMAND, REPORT, "summary.txt")):
        return False
    benchmarks = (point.container.get("benchmark") or {}).items()
    try:
        reported = yaml.safe_load(settings)
        there = (reported.get("benchmark") or {}).items()
        return reported.get("iter") == point.run.iter and all(item in there for item in benchmarks)
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return False  # damaged, or not of a run


def _read(path: Path) -> str | None:
    """Return the text of a file, None where there is none. Bytes that are no text are replaced."""
    return path.read_text(errors="replace") if path.exists() else None


def link(folder: Path, node: Node, store: Store) -> None:
    """Link an artifact of the store in the run folder, unless a link has its name already."""
    place = folder / LINKS / node.name
    if not place.is_symlink():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(_target(folder, node, store))


def _target(folder: Path, node: Node, store: Store) -> str:
    return os.path.relpath(store.path(node).resolve(), (folder / LINKS / node.name).parent.resolve())


def drop_stale_links(nodes: Sequence[Node], store: Store, folder: Path) -> bool:
    """Remove the links of another experiment that had this folder; return whether there were any.

    Where a link of this plan leads elsewhere, those of iterations beyond the plan belong to the other one too. Those of
    a benchmark with other settings are replaced alone.
    """
    wanted = {folder / LINKS / node.name: _target(folder, node, store) for node in nodes}
    present = [place for place in (folder / LINKS).rglob("*") if place.is_symlink()]
    other = [place for place in present if os.readlink(place) != wanted.get(place, os.readlink(place))]
    another_run = not all(place_of(str(place.relative_to(folder / LINKS))).benchmark for place in other)
    for place in present if another_run else other:
        if os.readlink(place) != wanted.get(place):
            place.unlink()
    return another_run
