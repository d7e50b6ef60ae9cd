"""Sweeps as real SLURM jobs whose command is a stub: it notes what it was given, and makes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from slurm_cluster import Cluster
from tiny_run import call, folders

from src.config import UserError
from src.graph import Task
from src.launcher import Point
from src.slurm.launcher import Slurm
from src.slurm.ledger import Ledger
from src.slurm.script import overrides
from src.sweep import Sweep

KINDS = ("setup", "generation", "ranking", "reference", "training", "evaluation", "report")
STUB = """\
#!{python}
# Begins, waits for the gate where it is closed, fails where it is told so, makes what it may, ends.
import fcntl, json, os, sys, time
from pathlib import Path
place, words = Path({place!r}), sys.argv[3:]
if "launcher=allocation" not in words:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
marks = [word.partition("=")[2] for word in words if word.startswith("launcher.mark=")]
words = [word for word in words if not word.startswith("launcher.mark=")]
def note(moment):
    with open(place / "noted", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps([moment, words]) + "\\n")
note("begins")
while (place / "closed").exists():
    time.sleep(0.05)
failing = (place / "failing").read_text() if (place / "failing").exists() else ""
if failing and failing in " ".join(words):
    sys.exit("told to fail")
makes = json.loads((place / "makes").read_text()) if (place / "makes").exists() else {{}}
for file in makes.get(json.dumps([word for word in words if not word.startswith("part=")]), []):
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).touch()
note("ends")
for mark in marks:
    (place / "store/.jobs" / mark).touch()
"""


@dataclass
class Place:
    """A store, runs, and a stub that writes beside them."""

    cluster: Cluster
    folder: Path
    python: str

    def __post_init__(self) -> None:
        self.stub = self.folder / "stub"
        self.stub.write_text(STUB.format(python=self.python, place=str(self.folder)))
        self.stub.chmod(0o755)

    @property
    def words(self) -> list[str]:
        """Small jobs."""
        found = [*folders(self.folder), "launcher=slurm", f"launcher.site.python={self.stub}", "launcher.parts=2"]
        for kind in KINDS:
            found += [f"launcher.jobs.{kind}.{key}" for key in ("cpus=1", "minutes=10", "memory_gb=null")]
        return found

    def call(self, *words: str) -> int:
        """`python -m src.main`."""
        return call(*self.in_order(words))

    def in_order(self, words: Sequence[str]) -> list[str]:
        """With those of all; a verb and -m come first."""
        first = [word for word in words if word in ("plan", "status", "cancel", "retry", "-m")]
        return [*first, *self.words, *words[len(first) :]]

    def close(self) -> None:
        """Jobs wait, once they have begun."""
        (self.folder / "closed").touch()

    def open(self) -> None:
        (self.folder / "closed").unlink()

    def fail(self, words: str | None) -> None:
        """Jobs with these words fail from now on."""
        (self.folder / "failing").write_text(words or "")

    def make(self, *words: str) -> None:
        """Jobs of these words leave behind what says that theirs is made; of parts, any of them."""
        sweep = Sweep(points_of(*self.in_order(words)))
        found: dict[str, list[str]] = {}
        for task in sweep.tasks(1):
            files = [sweep.store.path(node) / "record.json" for node in task.nodes]
            files = files or [sweep.points[task.point].folder / "report.md"]
            (own,) = words_of(task, sweep)
            found[json.dumps(own)] = [str(file) for file in files]
        (self.folder / "makes").write_text(json.dumps(found))

    @property
    def ledger(self) -> Ledger:
        return Ledger.of(self.folder / "store")

    def noted(self) -> list[tuple[str, tuple[str, ...]]]:
        """(begins or ends, words) in order."""
        file = self.folder / "noted"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(moment, tuple(words)) for moment, words in map(json.loads, lines)]

    def elements(self) -> dict[str, tuple[str, int]]:
        """Job -> name of its submission and index."""
        told = self.ledger.submissions.values()
        return {one.element(index): (one.name, index) for one in told if one.job for index in one.elements}

    def states(self) -> dict[str, set[str]]:
        """Of the jobs of the ledger, by name of their submission."""
        found: dict[str, set[str]] = {}
        jobs = self.cluster.jobs()
        for job, (name, _) in self.elements().items():
            found.setdefault(name, set()).add(jobs.get(job, "forgotten"))
        return found

    def alive(self) -> set[str]:
        """Jobs of the ledger that have not ended."""
        jobs = self.cluster.jobs()
        return {job for job in self.elements() if jobs.get(job) in ("PENDING", "RUNNING", "COMPLETING")}

    def wait(self, timeout: float = 60) -> None:
        """Until none of its jobs waits or runs."""
        end = time.monotonic() + timeout
        while self.alive():
            if time.monotonic() > end:
                raise UserError(f"still there: {self.states()}")
            time.sleep(0.2)


def points_of(*words: str) -> list[Point]:
    """Those of `python -m src.main *words`, launched by SLURM."""
    found: list[Point] = []
    with mock.patch.object(Slurm, "plan", lambda self, points: found.extend(points) or 0):
        assert call("plan", *words) == 0
    return found


def words_of(task: Task, sweep: Sweep) -> set[tuple[str, ...]]:
    """What the parts of a task are given, by the task alone."""
    own = overrides(sweep.points[task.point].overrides)
    only = [f"only=[{','.join(node.name for node in task.nodes)}]"] if task.nodes else []
    parts = [[f"part={part + 1}/{task.parts}"] for part in range(task.parts)] if task.parts > 1 else [[]]
    return {(*own, *only, *part, "launcher=allocation", "launcher.alone=true") for part in parts}
