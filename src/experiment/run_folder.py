"""What a run folder says of its run: the settings, the command, and whether the report is of what is asked for."""

from __future__ import annotations

from pathlib import Path

import yaml

from src.experiment.command import command
from src.experiment.point import Point
from src.kernel.disk import remove, write_atomic

COMMAND = "command.txt"


def is_reported(point: Point) -> bool:
    """Whether the report in its folder is of what it asks for: iterations and benchmarks; not hardware, say."""
    folder = point.folder
    settings = _read(folder / "config.yaml")
    if settings is None or not all((folder / name).exists() for name in (COMMAND, "report.md", "summary.txt")):
        return False
    wanted = (point.container.get("benchmark") or {}).items()
    try:
        told = yaml.safe_load(settings)
        reported = (told.get("benchmark") or {}).items()
        return told.get("iter") == point.run.iter and all(item in reported for item in wanted)
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return False  # damaged, or not of a run


def write_command(point: Point, anew: bool = False) -> None:
    """Write what the run was asked for; remove a report of other settings, or with `anew` any."""
    folder = point.folder
    if anew or _read(folder / "config.yaml") != point.settings:
        remove(folder / "report.md")
    write_atomic(folder / "config.yaml", point.settings.encode())
    write_atomic(folder / COMMAND, f"{command(point.overrides)}\n".encode())


def _read(path: Path) -> str | None:
    """Return the text; None where there is none. Bytes that are no text are replaced, so that it is none of ours."""
    return path.read_text(errors="replace") if path.exists() else None
