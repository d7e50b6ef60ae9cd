"""Which run folders a word such as `runs=` means: a glob, folders, or the name of a sweep."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from src.kernel.config import UserError

CONFIG = "config.yaml"
SHOWN = 5
"""Names in an error."""
LONGEST = 80
"""Letters of a word in an error."""


def folders(value: str) -> list[Path]:
    """The run folders of a glob, a folder, a sweep's name below `runs/` (or `elsewhere/eta`), or several by commas.

    Each once, in the order given. Raises UserError where a part of it names none.
    """
    words = _words(value)
    if not words:
        raise UserError("runs: names nothing; give a glob of run folders or a sweep's name")
    found: dict[Path, Path] = {}
    for word in words:
        for folder in _found(word) or _none(word):
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def is_run(folder: Path) -> bool:
    """Hidden folders are none, nor those that may not be looked into."""
    return not folder.name.startswith(".") and os.path.isfile(folder / CONFIG)


def swept(value: str) -> str | None:
    """The name of the sweep that `value` is, or None where it names folders or several."""
    words = list(dict.fromkeys(_words(value)))
    return Path(words[0]).name if len(words) == 1 and _is_sweep(words[0]) else None


def identity(value: str) -> str:
    """Of what `value` asks for, wherever it is typed; not of which runs there are by now."""
    return identity_of(_beside(word) / Path(word).name if _is_sweep(word) else Path(word) for word in _words(value))


def identity_of(places: Iterable[Path]) -> str:
    """12 hex digits."""
    return hashlib.sha256(
        "\n".join(sorted({str(place.resolve()) for place in places})).encode(errors="surrogateescape")
    ).hexdigest()[:12]


def _is_sweep(word: str) -> bool:
    return not _matched(word) and bool(_members(word))


def not_begun(value: str) -> list[str]:
    """A sentence for each sweep that `value` names and that has points without a run folder."""
    sweeps = {word: _points(word) for word in _words(value) if not _matched(word)}
    told = [_missing(Path(word).name, points) for word, points in sweeps.items()]
    return [sentence for sentences in told for sentence in sentences]


def _missing(sweep: str, points: list[Path]) -> list[str]:
    without = [point for point in points if not is_run(point)]
    locked = [point for point in without if _is_locked(point)]
    of = f"of {len(points)} points of the sweep {sweep}"
    told = {"not begun": len(without) - len(locked), "a folder that may not be looked into": len(locked)}
    return [f"{n} {of} {'has' if n == 1 else 'have'} {what}." for what, n in told.items() if n]


def _is_locked(folder: Path) -> bool:
    try:
        os.stat(folder / CONFIG)
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _words(value: str) -> list[str]:
    return [value] if _found(value) else [word for word in value.split(",") if word]


def _found(word: str) -> list[Path]:
    return _matched(word) or _members(word)


def _matched(word: str) -> list[Path]:
    if is_run(Path(word)):
        return [Path(word)]
    return sorted(path for path in map(Path, glob.glob(word)) if is_run(path))


def _members(word: str) -> list[Path]:
    """Those points of a sweep that have begun."""
    return [folder for folder in _points(word) if is_run(folder)]


def _points(word: str) -> list[Path]:
    """The run folders of a sweep, those too that are not there yet."""
    from src.experiment.sweep_note import members

    name, runs = Path(word), _beside(word)
    return members(runs, name.name) if name.name and not glob.has_magic(word) and os.path.isdir(runs) else []


def _beside(word: str) -> Path:
    """Where a sweep of this name has its runs."""
    return Path(word).parent if len(Path(word).parts) > 1 else Path("runs")


def _none(word: str) -> list[Path]:
    """Says what there is instead."""
    if points := _points(word):
        raise UserError(
            f"runs: {Path(word).name} is a sweep of {len(points)} points, and none of them has begun; "
            "wait for the first, or start the sweep again"
        )
    place, runs = Path(word), _beside(word)
    if any(map(is_run, _below(place))):
        raise UserError(f"runs: {word} is no run folder; those below it are {place / '*'}")
    there = [path.name for path in _below(runs) if is_run(path)]
    from src.experiment.sweep_note import names

    sweeps = names(runs) if os.path.isdir(runs) else []
    known = [f"the sweeps {_some(sweeps)}"] * bool(sweeps) + [f"the runs {_some(there)}"] * bool(there)
    raise UserError(
        f"runs: {_cut(word)} names no run folder and no sweep; "
        f"below {_cut(str(runs))} there are {' and '.join(known) or 'none'}"
    )


def _below(place: Path) -> list[Path]:
    return sorted(place.glob("*")) if os.path.isdir(place) else []


def _cut(word: str) -> str:
    return word if len(word) <= LONGEST else f"{word[: LONGEST - 1]}…"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", …" * (len(names) > SHOWN)
