"""What W&B has been shown of a family, in `<run folder>/.wandb/<family>.json`: by its W&B run, and by earlier ones.

The file says what was handed to W&B. A killed process takes with it what W&B had not written yet, so where a W&B run
was never finished, its own file says what was shown.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from src.artifact import write_atomic
from src.config import UserError
from src.records import Row
from src.tracking.families import TRIAL

FOLDER = ".wandb"
RUNS = "wandb"
"""W&B's own folder in a run folder."""
IDENTITY = ("artifact", "train/step")
"""Columns by which a row is the same one, made again: a GPU, or another speed, moves the last digits of the rest."""
PATIENCE_S = 120.0


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
    before: dict[str, Any] | None = None
    """What was shown when that was opened."""
    past: list[State] = dataclasses.field(default_factory=list)
    """W&B runs that the family had before, the oldest first: of other experiments, or in other projects."""

    def open(self, folder: str) -> None:
        self.unfinished = folder
        self.before = {"rows": len(self.rows), "artifacts": len(self.artifacts), "report": self.report}
        self.before["steps"] = self.steps

    def finish(self) -> None:
        self.unfinished = self.before = None


def run_id(folder: Path, family: str, number: int = 0) -> str:
    """16 hex digits: where the run lies, the family, and how many other experiments lay there before."""
    return hashlib.sha256(f"{folder.resolve()}\n{family}\n{number}".encode()).hexdigest()[:16]


def row_hash(row: Row) -> str:
    return hashlib.sha256(json.dumps([row.get(key) for key in IDENTITY]).encode()).hexdigest()[:8]


def fresh(place: Place, number: int) -> State:
    return State(id=place.run_id(number), project=place.project, entity=place.entity, plan=place.plan, number=number)


def read_state(place: Place) -> State:
    """That of this experiment in this project, the last one if there are several; else an empty one."""
    runs = read_all(place.file)
    own = [run for run in runs if run.plan == place.plan]
    found = next((run for run in reversed(own) if _same_place(run, place)), None)
    if found is None:
        found = fresh(place, own[-1].number if own else _next_number(runs))
    found.past = [run for run in runs if run is not found]
    return found


def followed(place: Place, state: State) -> State:
    """An empty one for other rows of the same experiment."""
    runs, state.past = [*state.past, state], []
    found = fresh(place, _next_number(runs))
    found.past = runs
    return found


def _same_place(run: State, place: Place) -> bool:
    return (run.id, run.project, run.entity) == (place.run_id(run.number), place.project, place.entity)


def _next_number(runs: list[State]) -> int:
    return max((run.number + 1 for run in runs), default=0)


def states(folder: Path) -> dict[str, list[State]]:
    """Of every family of a run folder; the last one is that of the experiment that has the folder now."""
    return {path.stem: read_all(path) for path in sorted(folder.glob(f"{FOLDER}/*.json"))}


def read_all(file: Path) -> list[State]:
    """Raises UserError where the file is damaged."""
    if not file.exists():
        return []
    try:
        known = json.loads(file.read_text())
        return [State(**run) for run in (*known.pop("past"), known)]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"{file}: damaged; W&B's runs in {file.parent.with_name(RUNS)} are whole: move both away"
        ) from None


def write_state(place: Place, state: State) -> None:
    place.file.parent.mkdir(exist_ok=True)
    _write(place.file, state)


def _write(file: Path, state: State) -> None:
    write_atomic(file, (json.dumps(dataclasses.asdict(state)) + "\n").encode())


def mark_linked(folder: Path, family: str, of: State) -> None:
    """W&B knows what the artifacts of this W&B run were made from; left unsaid where a process shows more just now."""
    file = folder / FOLDER / f"{family}.json"
    with suppress(Timeout), FileLock(file.with_suffix(".lock"), timeout=0):
        *past, last = read_all(file)
        for run in (*past, last):
            if (run.id, run.project, run.entity) == (of.id, of.project, of.entity):
                run.linked = list(of.artifacts)
        last.past = past
        _write(file, last)


def recover(place: Place, state: State) -> None:
    """After a kill: what W&B has written of the run that was open, which may be less than it was handed, or more."""
    if state.unfinished is None or state.before is None:
        return
    file, before = place.folder / RUNS / state.unfinished / f"run-{state.id}.wandb", state.before
    if file.exists():
        shown = list(_history(file))
        hashes = [row_hash(row) for row in shown if "artifact" in row]
        state.rows = state.rows[: before["rows"]] + hashes
        state.artifacts = dict(list(state.artifacts.items())[: before["artifacts"]])  # twice they are one version
        state.report = state.report if len(hashes) < len(shown) else before["report"]
        state.steps = max((row["_step"] + 1 for row in shown), default=before["steps"])
    state.finish()


def _history(file: Path) -> Iterator[Row]:
    """Rows in a file of W&B, read by its own tool."""
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    quiet = os.environ | {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}  # it would tell W&B of errors
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=True, env=quiet)
    for line in done.stdout.splitlines():
        record = json.loads(line)
        if record["type"] == "history":
            yield record["history"]["item"]
