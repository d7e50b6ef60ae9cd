"""Which run folders a word such as `runs=` means: a glob, folders, or the name of a sweep."""

from __future__ import annotations

import glob
from pathlib import Path

from src.config import UserError

CONFIG = "config.yaml"
SHOWN = 5
"""Names in an error."""


def folders(value: str) -> list[Path]:
    """The run folders of a glob, a folder, a sweep's name below `runs/` (or `elsewhere/eta`), or several by commas.

    Each once, in the order given. Raises UserError where a part of it names none.
    """
    words = [value] if _found(value) else [word for word in value.split(",") if word]
    if not words:
        raise UserError("runs: names nothing; give a glob of run folders or a sweep's name")
    found: dict[Path, Path] = {}
    for word in words:
        for folder in _found(word) or _none(word):
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def is_run(folder: Path) -> bool:
    """Hidden folders and those of sweeps are none."""
    name = folder.name
    return not name.startswith((".", "sweep-")) and (folder / CONFIG).is_file()


def swept(value: str) -> str | None:
    """The name of the sweep that `value` is, or None where it names folders."""
    return Path(value).name if not _matched(value) and _members(value) else None


def _found(word: str) -> list[Path]:
    return _matched(word) or _members(word)


def _matched(word: str) -> list[Path]:
    if is_run(Path(word)):
        return [Path(word)]
    return sorted(path for path in map(Path, glob.glob(word)) if is_run(path))


def _members(word: str) -> list[Path]:
    """Those points of a sweep that have begun."""
    from src.sweep_note import members

    name = Path(word)
    if not name.name or glob.has_magic(word):
        return []
    runs = name.parent if len(name.parts) > 1 else Path("runs")
    return [folder for folder in members(runs, name.name) if is_run(folder)]


def _none(word: str) -> list[Path]:
    """Says what there is instead."""
    place = Path(word)
    below = sorted(path for path in place.glob("*") if is_run(path)) if place.is_dir() else []
    if below:
        raise UserError(f"runs: {word} is no run folder; those below it are {place / '*'}")
    runs = place.parent if len(place.parts) > 1 else Path("runs")
    there = [path.name for path in sorted(runs.glob("*")) if is_run(path)]
    from src.sweep_note import names

    sweeps = names(runs)
    known = [f"the sweeps {_some(sweeps)}"] * bool(sweeps) + [f"the runs {_some(there)}"] * bool(there)
    raise UserError(
        f"runs: {word} names no run folder and no sweep; below {runs} there are {' and '.join(known) or 'none'}"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", …" * (len(names) > SHOWN)
