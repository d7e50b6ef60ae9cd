"""Which runs belong together: a sweep leaves a note beside its runs, and `runs=` names a sweep or run folders.

runs/sweep-<points>-<hash>/points.json
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from src.experiment.point import Point
from src.experiment.run_folder import CONFIG
from src.kernel.artifact import fingerprint_hash
from src.kernel.config import UserError
from src.kernel.disk import write_atomic

GRID = re.compile(r"\+{1,2}sweep=(\w+)")
"""The word that brings a grid of sweeps/."""
LISTED = 5
"""Names in an error."""

# Notes of sweeps -----------------------------------------------------------------------------------------------------


def folder_of(points: Sequence[Point]) -> Path:
    """Return where a command leaves what is of all its points: the run's own folder, or one of the sweep."""
    if len(points) == 1:
        return points[0].folder
    identity = fingerprint_hash(sorted(point.folder.name for point in points))[:6]
    return points[0].run.runs / f"sweep-{len(points)}-{identity}"


def _name_of(points: Sequence[Point]) -> str:
    """Return the name of the sweep: of its grid in sweeps/, else of its folder."""
    grids = [match[1] for word in points[0].overrides if (match := GRID.fullmatch(word))]
    return "+".join(grids) or folder_of(points).name


def note_sweep(points: Sequence[Point]) -> None:
    """Write the note of a sweep; a single point is none. Raises UserError where it cannot be written."""
    if len(points) == 1:
        return
    note = {
        "name": _name_of(points),
        "command": list(points[0].command),
        "points": [{"folder": point.folder.name, "overrides": point.overrides} for point in points],
    }
    file = folder_of(points) / "points.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, (json.dumps(note, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"runs: cannot write {file.parent} ({error.strerror}); is it a folder of yours?") from None


def sweep_of(points: Sequence[Point]) -> str | None:
    """Return what `compare runs=` calls the sweep, from the current folder; None for a single point."""
    if len(points) == 1:
        return None
    runs, name = points[0].run.runs, _name_of(points)
    return name if runs.resolve() == Path("runs").resolve() else str(runs / name)


def group_of(folder: Path) -> str | None:
    """Return the name of the sweep that a run folder is a point of; of several, the one asked for last.

    Notes that cannot be read are passed over: another sweep's is no matter of this run.
    """
    sweeps = [name for name, _, points in _notes(folder.parent, strict=False) if folder.name in points]
    return sweeps[-1] if sweeps else None


def members(runs: Path, sweep: str) -> list[Path]:
    """Return the run folders of all sweeps of a name, or of a note's own folder, in their order."""
    points = [points for name, note, points in _notes(runs) if sweep in (name, note)]
    return [runs / folder for folder in dict.fromkeys(folder for folders in points for folder in folders)]


def names(runs: Path) -> list[str]:
    """Return the names of all sweeps below a folder."""
    return sorted({name for name, _, _ in _notes(runs)})


def _notes(runs: Path, strict: bool = True) -> Iterator[tuple[str, str, list[str]]]:
    """Yield name, folder and points of each note, the one asked for last at the end.

    Raises UserError for one that cannot be read; without `strict` it is left out.
    """
    for file in sorted(runs.glob("sweep-*/points.json"), key=lambda file: (os.stat(file).st_mtime_ns, file)):
        try:
            note = json.loads(file.read_text())
            name, points = note["name"], [point["folder"] for point in note["points"]]
            if not all(isinstance(text, str) for text in (name, *points)):
                raise TypeError
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            if not strict:
                continue
            raise UserError(f"{file}: no note of a sweep; remove it, the sweep's command writes it again") from None
        yield name, file.parent.name, points


# What `runs=` names --------------------------------------------------------------------------------------------------


def folders(value: str) -> list[Path]:
    """Return the run folders of a glob, a folder, a sweep's name below `runs/` (or `elsewhere/eta`), or several.

    Several are joined by commas; each folder comes once, in the order given. Raises UserError where a part names none.
    """
    chosen: dict[Path, Path] = {}
    for word in dict.fromkeys(_words(value)):
        found = _matched(word) or [folder for folder in _points(word) if is_run(folder)]
        if not found:
            raise UserError(f"runs: {_nothing(word)}")
        for folder in found:
            chosen.setdefault(folder.resolve(), folder)
    if not chosen:
        raise UserError("runs: names nothing; give a glob of run folders or a sweep's name")
    return list(chosen.values())


def is_run(folder: Path) -> bool:
    """Say whether a folder is that of a run. Hidden ones are none, nor those that may not be looked into."""
    return not folder.name.startswith(".") and os.path.isfile(folder / CONFIG)


def swept(value: str) -> str | None:
    """Return the name of the sweep that `value` is; None where it names folders or several."""
    words = list(dict.fromkeys(_words(value)))
    return Path(words[0]).name if len(words) == 1 and _is_sweep(words[0]) else None


def identity(value: str) -> str:
    """Return 12 hex digits of what `value` asks for, wherever it is typed and whatever runs there are by now."""
    return identity_of(_place(word) if _is_sweep(word) else Path(word) for word in _words(value))


def identity_of(places: Iterable[Path]) -> str:
    lines = "\n".join(sorted({str(place.resolve()) for place in places}))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:12]


def not_begun(value: str) -> list[str]:
    """Return a sentence for each sweep that `value` names and that has points without a run folder."""
    sentences = []
    for word in dict.fromkeys(_words(value)):
        points = [] if _matched(word) else _points(word)
        if count := sum(not is_run(point) for point in points):
            verb = "has" if count == 1 else "have"
            sentences.append(f"{count} of {len(points)} points of the sweep {Path(word).name} {verb} not begun.")
    return sentences


def _words(value: str) -> list[str]:
    return [word for word in value.split(",") if word]


def _matched(word: str) -> list[Path]:
    return sorted(path for path in map(Path, glob.glob(word)) if is_run(path))


def _place(word: str) -> Path:
    """Return the path of a sweep's name: below `runs`, unless the word says where."""
    return Path(word) if len(Path(word).parts) > 1 else Path("runs") / word


def _points(word: str) -> list[Path]:
    """Return the run folders of a sweep, also those that are not there yet."""
    place = _place(word)
    return members(place.parent, place.name) if os.path.isdir(place.parent) else []


def _is_sweep(word: str) -> bool:
    return not _matched(word) and any(map(is_run, _points(word)))


def _nothing(word: str) -> str:
    """Say what there is in place of a word that names no run folder."""
    if points := _points(word):
        return f"{word} is a sweep of {len(points)} points, and none of them has begun; wait for the first"
    below = glob.glob(f"{glob.escape(word)}/*")
    if any(map(is_run, map(Path, below))):
        return f"{word} is no run folder; those below it are {word}/*"
    runs = _place(word).parent
    sweeps = names(runs) if os.path.isdir(runs) else []
    there = sorted(path.name for path in map(Path, glob.glob(f"{glob.escape(str(runs))}/*")) if is_run(path))
    known = [f"the {what} {', '.join(some[:LISTED])}" for what, some in (("sweeps", sweeps), ("runs", there)) if some]
    return (
        f"{word:.80} names no run folder and no sweep; below {str(runs):.80} there are {' and '.join(known) or 'none'}"
    )
