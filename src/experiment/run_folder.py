"""The folder of a run: its settings and command, its links into the store, and whether its report is up to date.

`<run>/artifacts/it2/pairs` is a link to the artifact in the store.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from src.experiment.point import Point
from src.kernel.artifact import Node, place_of
from src.kernel.config import UserError, fingerprint
from src.kernel.disk import remove, write_atomic
from src.kernel.record import FOLDER, RECORD, read_record
from src.kernel.store import Store

COMMAND, CONFIG, REPORT = "command.txt", "config.yaml", "report.md"
LINKS = "artifacts"
STARTED = re.compile(r"[+~]*(launcher[.=]|slurm@|(only|part)=|replace=|hardware\.(generation|ranking)\.workers=)")
"""Words that say who starts the stages, which of them, in how many processes, and instead of what."""
NESTED = re.compile(rb"[\[{]{30}")
"""PyYAML takes a second over a thousand brackets in each other."""
BY_CONTENT = ("source_version", "content")
"""Fields of a config that are hashes of files."""


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
    folder, reported = point.folder, _settings(point.folder)
    there, asked = reported.get("benchmark") or {}, point.container.get("benchmark") or {}
    if not isinstance(there, dict) or reported.get("iter") != point.run.iter:
        return False
    files = [folder / name for name in (COMMAND, REPORT, "summary.txt")]
    return all(there.get(name) == value for name, value in asked.items()) and all(file.exists() for file in files)


def settings_file(folder: Path) -> Path:
    """Return the file of settings of a run folder. Raises ValueError for what no run writes and takes long to read."""
    if NESTED.search((file := folder / CONFIG).read_bytes()):
        raise ValueError(f"{CONFIG} has brackets in brackets")
    return file


def _settings(folder: Path) -> dict[str, Any]:
    """Return the settings in a run folder; none where there are none, or where they cannot be read."""
    with suppress(FileNotFoundError, yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError,
                  TypeError, ValueError):  # fmt: skip
        return dict(yaml.safe_load(settings_file(folder).read_text(errors="replace")))
    return {}


def _read(path: Path) -> str | None:
    """Return the text of a file, None where there is none. Bytes that are no text are replaced."""
    return path.read_text(errors="replace") if path.exists() else None


def link(folder: Path, node: Node, store: Store) -> None:
    """Link an artifact of the store in the run folder, anew where the folder or the store was moved.

    A copy of the artifact stays, and so does what has another key.
    """
    place = folder / LINKS / node.name
    target = os.path.relpath(store.path(node).resolve(), place.parent.resolve())
    if place.is_symlink() and key_of(place) == node.key and os.readlink(place) != target:
        place.unlink()
    if not os.path.lexists(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)


def key_of(place: Path) -> str | None:
    """Return the key of the artifact that a link leads to, or led to before it was moved, or that a copy holds."""
    if place.is_symlink():
        return Path(os.readlink(place)).name
    return str(read_record(place).get("key")) if (place / RECORD).is_file() else None


def artifact_at(place: Path, root: Path) -> Path:
    """Return the artifact of a link or a copy; where the link was moved, the one of its key in the store `root`."""
    return place.resolve() if place.exists() else root.joinpath(*Path(os.readlink(place)).parts[-2:])


def drop_stale(nodes: Sequence[Node], folder: Path) -> bool:
    """Remove the links of another experiment that had this folder; return whether there were any.

    Where a link of this plan has another key, those of iterations beyond the plan belong to the other one too. Those of
    a benchmark with other settings are replaced alone. Raises UserError for a copy, which may be all that there is.
    """
    wanted = {folder / LINKS / node.name: node.key for node in nodes}
    present = {place: key for place in (folder / LINKS).rglob("*") if FOLDER.fullmatch(key := key_of(place) or "")}
    other = [place for place, key in present.items() if key != wanted.get(place, key)]
    another_run = not all(place_of(str(place.relative_to(folder / LINKS))).benchmark for place in other)
    stale = [place for place in (present if another_run else other) if present[place] != wanted.get(place)]
    if copied := next((place for place in stale if not place.is_symlink()), None):
        raise UserError(f"runs: {copied} is a copy of another artifact, and no link; move it away")
    for place in stale:
        place.unlink()
    return another_run


# What differs --------------------------------------------------------------------------------------------------------


def check_same(points: Iterable[Point]) -> None:
    """Raise UserError where a run folder is that of another experiment, whose links and report a point would replace.

    Another version of the code and other content of the same files are none: what they change is made again.
    """
    for point in points:
        if not point.run.replace and any(_changed(point)):
            before = _settings(point.folder)
            differing = _differing(before, point.container, fingerprint(point.run))
            lines = _told(differing) if before else f"{CONFIG} cannot be read"
            if lines:
                what = f"{point.folder} has another experiment: {lines}"
                raise UserError(f"name: {what}; choose another name, or replace=true")


def made_again(point: Point) -> list[str]:
    """Say what of the run folder will be made again and why; what the store has, or only follows, is left out."""
    store, lines = Store(point.run.store), []
    typed = [*_differing(_settings(point.folder), point.container, point.container)]
    for node, artifact in _changed(point, benchmarks=True):
        if not (artifact / RECORD).is_file():
            continue
        record, config = read_record(artifact), fingerprint(node.stage)
        before = {"version": record.get("version"), **(record.get("config") or {})}
        now = {"version": node.stage.version, **config}
        changes = [_as_typed(change, typed) for change in _differing(before, now, now)]
        if changes and not store.has(node):
            lines.append(f"{node.name}: made again, because {_told(changes)}")
    return lines


def _as_typed(change: Change, typed: Sequence[Change]) -> Change:
    """Return the change of the config that a stage's field follows: of the same last name, best of the same values."""
    alike = [one for one in typed if one[0].rpartition(".")[2] == change[0].rpartition(".")[2]]
    return min(alike, key=lambda one: one[1:] != change[1:], default=change)


def _changed(point: Point, benchmarks: bool = False) -> Iterator[tuple[Node, Path]]:
    """Yield each node that has another key in the run folder, and the artifact there, which may be gone."""
    for node in point.nodes:
        place = point.folder / LINKS / node.name
        if (not benchmarks and node.place.benchmark) or key_of(place) in (None, node.key):
            continue
        yield node, artifact_at(place, point.run.store)


Change = tuple[str, Any, Any]
"""A dotted key, its value before, and its value now."""


def _told(changes: Iterable[Change]) -> str:
    """Say what changed: the first three places."""
    told = [
        "its files changed" if key.endswith(BY_CONTENT) else f"{key} was {old!s:.60} and is {new!s:.60}"
        for key, old, new in changes
    ]
    return "; ".join(told[:3]) + ("; …" if told[3:] else "")


def _differing(old: Any, new: Any, keyed: Any, key: str = "") -> Iterator[Change]:
    """Yield where two nested dicts differ in a key that is in `keyed`."""
    old, new, keyed = (dict(enumerate(each)) if isinstance(each, list) else each for each in (old, new, keyed))
    if isinstance(old, dict) and isinstance(new, dict) and isinstance(keyed, dict):
        for name in keyed:
            if name in old or name in new:
                yield from _differing(old.get(name), new.get(name), keyed[name], f"{key}.{name}".strip("."))
    elif old != new:
        yield key, old, new
