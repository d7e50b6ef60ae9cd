"""What W&B has been shown of a family, in `<run folder>/.wandb/<family>.json`.

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
from pathlib import Path
from typing import Any

from src.artifact import write_atomic
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
    """Of one family; `rows` are hashes of those shown, `artifacts` keys of the store, `report` a hash of the plots."""

    id: str
    project: str
    entity: str | None
    plan: str
    number: int = 0
    """Other experiments that had the folder before."""
    rows: list[str] = dataclasses.field(default_factory=list)
    artifacts: list[str] = dataclasses.field(default_factory=list)
    report: str | None = None
    steps: int = 0
    """Of the W&B run: its next step."""
    unfinished: str | None = None
    """W&B's folder of a run that was opened and not finished since."""
    before: dict[str, Any] | None = None
    """What was shown when that was opened."""

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
    """An empty one where nothing was shown, or what was shown is in another run or of another experiment."""
    known = json.loads(place.file.read_text()) if place.file.exists() else {}
    number = known.get("number", 0)
    state = fresh(place, number + (known.get("plan", place.plan) != place.plan))
    if any(known.get(name) != getattr(state, name) for name in ("id", "project", "entity", "plan")):
        return state
    return State(**known)


def write_state(place: Place, state: State) -> None:
    place.file.parent.mkdir(exist_ok=True)
    write_atomic(place.file, (json.dumps(dataclasses.asdict(state)) + "\n").encode())


def recover(place: Place, state: State) -> None:
    """After a kill: what W&B has written of the run that was open, which may be less than it was handed, or more."""
    if state.unfinished is None or state.before is None:
        return
    file, before = place.folder / RUNS / state.unfinished / f"run-{state.id}.wandb", state.before
    if file.exists():
        shown = list(_history(file))
        hashes = [row_hash(row) for row in shown if "artifact" in row]
        state.rows = state.rows[: before["rows"]] + hashes
        state.artifacts = state.artifacts[: before["artifacts"]]  # logged twice they are one version
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
