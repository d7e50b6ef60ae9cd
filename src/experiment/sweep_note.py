"""Which runs were asked for together: a note beside them, for those who compare them later.

runs/sweep-<points>-<hash>/points.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from src.experiment.point import Point
from src.kernel.artifact import fingerprint_hash
from src.kernel.config import UserError
from src.kernel.disk import write_atomic

GRID = re.compile(r"\+{1,2}sweep=(\w+)")
"""The word that brings a grid of sweeps/."""


def folder_of(points: Sequence[Point]) -> Path:
    """What a command leaves beside its points: in the run's own folder, or in one for all points of a sweep."""
    return points[0].folder if len(points) == 1 else points[0].run.runs / f"sweep-{len(points)}-{_identity(points)}"


def note_sweep(points: Sequence[Point]) -> None:
    """Write the note; a single point is no sweep. Equal points leave the same bytes.

    Raises UserError where it cannot be written.
    """
    if len(points) == 1:
        return
    first, file = points[0], folder_of(points) / "points.json"
    told = {
        "name": _name(first, file.parent.name),
        "command": list(first.command),
        "points": [{"folder": point.folder.name, "overrides": point.overrides} for point in points],
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"runs: cannot write {file.parent} ({error.strerror}); is it a folder of yours?") from None


def sweep_of(points: Sequence[Point]) -> str | None:
    """What `compare runs=` calls a grid beside the current folder's `runs`, or where else it lies."""
    if len(points) == 1:
        return None
    runs, name = points[0].run.runs, _name(points[0], folder_of(points).name)
    return name if runs.resolve() == Path("runs").resolve() else str(runs / name)


def group_of(folder: Path) -> str | None:
    """The name of the sweep, of several the one asked for last, that a run folder is a point of.

    Of the notes that can be read: another sweep's is no matter of this run.
    """
    found = [note["name"] for _, note in _notes(folder.parent, readable=True) if folder.name in _of(note)]
    return found[-1] if found else None


def members(runs: Path, name: str) -> list[Path]:
    """The run folders of all sweeps of a name, or of a note's own folder, in their order; [] where there is none."""
    found = [_of(note) for path, note in _notes(runs) if name in (note["name"], path.parent.name)]
    return [runs / folder for folder in dict.fromkeys(folder for folders in found for folder in folders)]


def names(runs: Path) -> list[str]:
    """Of all sweeps below a folder."""
    return sorted({note["name"] for _, note in _notes(runs)})


def _identity(points: Sequence[Point]) -> str:
    return fingerprint_hash(sorted(point.folder.name for point in points))[:6]


def _name(point: Point, otherwise: str) -> str:
    """Of the grids of sweeps/ that were given."""
    return "+".join(found[1] for word in point.overrides if (found := GRID.fullmatch(word))) or otherwise


def _of(note: dict[str, Any]) -> list[str]:
    return [point["folder"] for point in note["points"]]


def _notes(runs: Path, readable: bool = False) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The one asked for last comes last. Raises UserError at one that cannot be read, unless only `readable` count."""
    for path in sorted(runs.glob("sweep-*/points.json"), key=_written):
        try:
            note = json.loads(path.read_text())
            folders = [point["folder"] for point in note["points"]]
            if not all(isinstance(word, str) for word in (note["name"], *folders)):
                raise TypeError
        except FileNotFoundError:  # removed meanwhile
            continue
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            if readable:
                continue
            raise UserError(f"{path}: no note of a sweep; remove it, the sweep's command writes it again") from None
        yield path, {"name": note["name"], "points": [{"folder": folder} for folder in folders]}


def _written(path: Path) -> tuple[int, Path]:
    """When; one that was removed meanwhile comes first."""
    with suppress(OSError):
        return path.stat().st_mtime_ns, path
    return 0, path
