"""Which runs belong together: a sweep leaves a note beside its runs, and `runs=` names a sweep or run folders.

runs/sweep-<points>-<hash>/points.json
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from src.experiment.point import Point
from src.experiment.run_folder import CONFIG
from src.kernel.artifact import fingerprint_hash
from src.kernel.config import UserError, meant
from src.kernel.disk import check_place, write_atomic

GRID = re.compile(r"\+{1,2}sweep=(\w+)")
"""The word that brings a grid of sweeps/."""
LISTED = 8
"""Most names in an error message."""

# Notes of sweeps -----------------------------------------------------------------------------------------------------


def folder_of(points: Sequence[Point]) -> Path:
    """Return the folder for what belongs to all points of a command: the run's own, or one of the sweep."""
    if len(points) == 1:
        return points[0].folder
    identity = fingerprint_hash(sorted(point.folder.name for point in points))[:6]
    return points[0].run.runs / f"sweep-{len(points)}-{identity}"


def note_sweep(points: Sequence[Point]) -> str | None:
    """Write the note of a sweep and return what `compare runs=` calls it; a single point has none.

    The name is that of its grid in sweeps/, else of its folder. Raises UserError where the note cannot be written.
    """
    if len(points) == 1:
        return None
    folder = folder_of(points)
    grids = [match[1] for word in points[0].overrides if (match := GRID.fullmatch(word))]
    name = "+".join(grids) or folder.name
    members = [{"folder": point.folder.name, "overrides": point.overrides} for point in points]
    note = {"name": name, "command": list(points[0].command), "points": members}
    check_place("runs", folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "points.json", (json.dumps(note, indent=1, ensure_ascii=False) + "\n").encode())
    return str(folder.parent / name)


def group_of(folder: Path) -> str | None:
    """Return the name of the sweep that a run folder is a point of; of several, the one asked for last."""
    sweeps = [name for name, _, points in _notes(folder.parent) if folder in points]
    return sweeps[-1] if sweeps else None


def _notes(runs: Path) -> Iterator[tuple[str, str, list[Path]]]:
    """Yield name, folder and run folders of each note, the one asked for last at the end.

    A damaged note is left out: another sweep's is no matter of a run, and the sweep's command writes it again.
    """
    for file in sorted(runs.glob("sweep-*/points.json"), key=lambda file: (file.stat().st_mtime_ns, file)):
        try:
            note = json.loads(file.read_text())
            name, points = str(note["name"]), [runs / point["folder"] for point in note["points"]]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            continue
        yield name, file.parent.name, points


# What `runs=` names --------------------------------------------------------------------------------------------------


def folders(value: str) -> list[Path]:
    """Return the run folders of a glob, a folder, the name of a run or a sweep below `runs/`, or several of these.

    Several are joined by commas; each folder comes once, in the order given. Raises UserError where a part names none.
    """
    chosen: dict[Path, Path] = {}
    for word in dict.fromkeys(value.split(",")):
        place = str(_place(word))
        folders = _matched(word) or list(filter(is_run, points_of(word))) or _matched(place)
        if not folders:
            runs = _place(word).parent
            present = [folder.name for folder in _matched(f"{glob.escape(str(runs))}/*")]
            known = [*sorted({name for name, _, _ in _notes(runs)}), *present]
            there = f"below {str(runs):.80} there are {', '.join(known[:LISTED]) or 'none'}"
            hint = meant(_place(word).name, known)
            raise UserError(f"runs: {word!r:.80} names no run folder and no sweep that has begun; {hint}{there}")
        for folder in folders:
            chosen.setdefault(folder.resolve(), folder)
    return list(chosen.values())


def is_run(folder: Path) -> bool:
    """Say whether a folder is a run folder. Hidden folders are not, nor those that cannot be read."""
    return not folder.name.startswith(".") and os.path.isfile(folder / CONFIG)


def points_of(word: str) -> list[Path]:
    """Return the run folders of all sweeps of a name, or of a note's own folder; some may not be there yet."""
    place = _place(word)
    points = [points for name, note, points in _notes(place.parent) if place.name in (name, note)]
    return list(dict.fromkeys(folder for folders in points for folder in folders))


def swept(value: str) -> str | None:
    """Return the name of the sweep that `value` is; None where it names folders or several."""
    return Path(value).name if not _matched(value) and any(map(is_run, points_of(value))) else None


def not_begun(value: str) -> list[str]:
    """Return a sentence for each sweep that `value` names and that has points without a run folder."""
    sentences = []
    for word in dict.fromkeys(value.split(",")):
        points = [] if _matched(word) else points_of(word)
        if count := sum(not is_run(point) for point in points):
            sentences.append(f"Of the sweep {Path(word).name}, {count} of {len(points)} points are not begun.")
    return sentences


def _matched(word: str) -> list[Path]:
    return sorted(path for path in map(Path, glob.glob(word)) if is_run(path))


def _place(word: str) -> Path:
    """Return the path of a sweep's name: below `runs`, unless the word says where."""
    return Path(word) if len(Path(word).parts) > 1 else Path("runs") / word
