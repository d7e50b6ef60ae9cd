"""What W&B has been shown of a family, in `<run folder>/.wandb/<family>.json`: by its W&B run, and by earlier ones.

The file says what was handed to W&B; where it is lost or in doubt, recovery.py asks W&B's own files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from src.kernel.config import UserError
from src.kernel.disk import write_atomic
from src.kernel.rows import Row
from src.reporting.tracking.families import TRIAL

FOLDER = ".wandb"
RUNS = "wandb"
"""W&B's own folder in a run folder."""
IDENTITY = ("artifact", "train/step")
"""Columns by which a row is the same one, made again: a GPU, or another speed, moves the last digits of the rest."""


class Damaged(UserError):
    """A state file that cannot be made sense of."""


@dataclasses.dataclass
class Before:
    """Of a W&B run when it was opened: how many rows and artifacts it had shown, which plots, its next step."""

    rows: int
    artifacts: int
    report: str | None
    steps: int


@dataclasses.dataclass(frozen=True)
class Place:
    """Which W&B run a family has, but for the experiments that had the folder before."""

    folder: Path
    family: str
    project: str
    entity: str | None
    plan: str
    """Which experiment has the folder."""

    @property
    def file(self) -> Path:
        return self.folder / FOLDER / f"{self.family}.json"

    @property
    def lock(self) -> Path:
        return self.file.with_suffix(".lock")

    def run_id(self, number: int) -> str:
        """In a trial of a sweep W&B takes the id of its agent, whatever it is given."""
        return os.environ["WANDB_RUN_ID"] if self.family == TRIAL else run_id(self.folder, self.family, number)

    def numbers(self, most: int) -> dict[str, int]:
        """Ids of W&B runs that the family may have had -> their numbers."""
        if self.family == TRIAL:
            return {self.run_id(0): 0}
        folder = self.folder.resolve()  # asks the file system, once
        return {_id(folder, self.family, number): number for number in range(most)}


@dataclasses.dataclass
class State:
    """Of one W&B run; `rows` are hashes of those shown, `report` a hash of the plots."""

    id: str
    project: str
    entity: str | None
    plan: str
    number: int = 0
    """Others that the family had before."""
    rows: list[str] = dataclasses.field(default_factory=list)
    artifacts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Those shown, as `kind:key` of the store, and those that each was made from."""
    linked: list[str] = dataclasses.field(default_factory=list)
    """Of `artifacts`, those of which W&B has been told what they were made from."""
    report: str | None = None
    steps: int = 0
    """Of the W&B run: its next step."""
    unfinished: str | None = None
    """W&B's folder of a run that was opened and not finished since."""
    before: Before | None = None
    cut: str | None = None
    """W&B's folder of the last run that was found unfinished: later steps must not overtake what it may still hold."""
    past: list[State] = dataclasses.field(default_factory=list)
    """W&B runs that the family had before, the oldest first: of other experiments, or in other projects."""

    def open(self, folder: str) -> None:
        self.unfinished = folder
        self.before = Before(len(self.rows), len(self.artifacts), self.report, self.steps)

    def finish(self) -> None:
        self.unfinished = self.before = None


_FORM = TypeAdapter(State)


def run_id(folder: Path, family: str, number: int = 0) -> str:
    """16 hex digits: where the run lies, the family, and how many other experiments lay there before."""
    return _id(folder.resolve(), family, number)


def _id(folder: Path, family: str, number: int) -> str:
    return hashlib.sha256(f"{folder}\n{family}\n{number}".encode()).hexdigest()[:16]


def row_hash(row: Row) -> str:
    return hashlib.sha256(json.dumps([row.get(key) for key in IDENTITY]).encode()).hexdigest()[:8]


def fresh(place: Place, number: int) -> State:
    return State(id=place.run_id(number), project=place.project, entity=place.entity, plan=place.plan, number=number)


def read_state(place: Place) -> State:
    """That of this experiment in this project, the last one if there are several; else an empty one.

    A damaged file is none: whoever holds the family's lock mends it.
    """
    runs: list[State] = []
    with suppress(Damaged):
        runs = read_all(place.file)
    own = [run for run in runs if run.plan == place.plan]
    found = next((run for run in reversed(own) if _same_place(run, place)), None)
    if found is None:
        found = fresh(place, own[-1].number if own else _next_number(runs))
    found.entity = place.entity or found.entity
    found.past = [run for run in runs if run is not found]
    return found


def followed(place: Place, state: State) -> State:
    """An empty one for other rows of the same experiment."""
    runs, state.past = [*state.past, state], []
    found = fresh(place, _next_number(runs))
    found.past = runs
    return found


def _same_place(run: State, place: Place) -> bool:
    """An entity that is not given, or not known, is whichever the W&B run is in."""
    known = None not in (run.entity, place.entity)
    if known and run.entity != place.entity:
        return False
    return (run.id, run.project) == (place.run_id(run.number), place.project)


def _next_number(runs: list[State]) -> int:
    return max((run.number + 1 for run in runs), default=0)


def states(folder: Path) -> dict[str, list[State]]:
    """Of every family of a run folder whose file can be read, which `damage` tells; of each the last one is that of the
    experiment that has the folder now.
    """
    found: dict[str, list[State]] = {}
    for path in _files(folder):
        with suppress(UserError):
            found[path.stem] = read_all(path)
    return found


def damage(folders: Iterable[Path]) -> dict[Path, str]:
    """Run folder -> one line: those that have a file that cannot be read."""
    found: dict[Path, str] = {}
    for folder in folders:
        try:
            for path in _files(folder):
                read_all(path)
        except UserError as error:
            found[folder] = str(error)
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{FOLDER}/*.json"))


def read_all(file: Path) -> list[State]:
    """The last one is that of the experiment that has the folder now; [] where there is no file.

    Raises Damaged, or UserError where the file is kept from us.
    """
    try:
        last = _FORM.validate_json(file.read_bytes())
    except FileNotFoundError:
        return []
    except (ValidationError, IsADirectoryError):
        raise Damaged(f"{file}: damaged; the run's next start makes it again from W&B's files") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    past, last.past = last.past, []
    return [*past, last]


def write_state(place: Place, state: State) -> None:
    place.file.parent.mkdir(exist_ok=True)
    _write(place.file, state)


def write_all(file: Path, runs: Sequence[State]) -> None:
    *past, last = runs
    last.past = past
    _write(file, last)
    last.past = []


def _write(file: Path, state: State) -> None:
    write_atomic(file, (json.dumps(dataclasses.asdict(state)) + "\n").encode())


def mark_linked(folder: Path, family: str, of: State, entity: str | None) -> None:
    """W&B knows what the artifacts of this W&B run, which is in `entity`, were made from.

    Left unsaid where a process shows more just now.
    """
    file = folder / FOLDER / f"{family}.json"
    with suppress(Timeout, Damaged), FileLock(file.with_suffix(".lock"), timeout=0):
        runs = read_all(file)
        for run in runs:
            if (run.id, run.project, run.entity) == (of.id, of.project, of.entity):
                run.linked, run.entity = list(of.artifacts), run.entity or entity
        if runs:
            write_all(file, runs)
