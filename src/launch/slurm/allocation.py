"""`launcher=allocation`: in the SLURM job around this process, which may have been started before."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from src.experiment.launcher import Local, Point, win_of
from src.experiment.sweep_note import note_sweep
from src.kernel.artifact import Node
from src.kernel.children import cores
from src.kernel.config import Free, UserError, config
from src.kernel.disk import write_atomic
from src.kernel.store import Store
from src.launch.slurm.ledger import FOLDER
from src.reporting.metrics_file import METRICS as LIVE

LONGEST_WAIT_S = 600.0
KEPT = ("*.jsonl", "*/*.db")
"""What stages add to in their working folders; the second are lm-eval's replies to the requests of a column."""
WHOLE = "whole"
"""Marks a checkpoint of a training (src/training/checkpoints.py, which imports torch)."""


@config
class Allocation:
    """One point after the other, unless this job was started too often without getting on."""

    alone: Free[bool]
    """What other jobs make must be there: inputs of what `only` names; without it, all but the report."""
    attempts: Free[PositiveInt]
    """Starts without progress."""
    wait_seconds: Free[Annotated[float, Field(ge=0)]]
    """Before the second such start; doubled before each further one."""
    mark: Free[Annotated[str, Field(pattern=r"^[\w-]+$")] | None]
    """Of a job that makes a share: the file beside the ledger that says it is done."""

    def launch(self, points: Sequence[Point]) -> int:
        import torch

        from src.launch.runner import execute

        note_sweep(points)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(cores())
        for point in points:
            starts = self._await_turn(point)
            execute(point, self.alone)
            starts.unlink(missing_ok=True)
            if self.mark:
                (starts.parent / self.mark).touch()
        return 0

    def plan(self, points: Sequence[Point]) -> int:
        return Local().plan(points)

    def await_win(self, point: Point) -> float:
        return win_of(point)

    def _await_turn(self, point: Point) -> Path:
        """Where starts are counted. Raises UserError at one too many; waits before those that follow one in vain."""
        job = os.environ.get("SLURM_JOB_ID")
        if job is None:
            raise UserError("launcher: allocation is for SLURM jobs; here, launcher=local")
        nodes = [node for node in point.run.nodes() if not point.run.wanted or node.name in point.run.wanted]
        store = Store(point.run.store)
        starts = store.root / FOLDER / f"starts-{os.environ.get('SLURM_CLUSTER_NAME', '')}-{job}.json"
        number = count_start(starts, progress(store, nodes))
        if number > self.attempts:
            raise UserError(
                f"launcher.attempts: job {job} was started {self.attempts} times without progress; "
                "mend what stops it, and submit it again"
            )
        if number > 1:
            wait = min(self.wait_seconds * 2 ** (number - 2), LONGEST_WAIT_S)
            print(f"start {number} of {self.attempts} without progress; waiting {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)
        return starts


def count_start(file: Path, now: str) -> int:
    """How often the job was started while its progress was `now`, this time included."""
    number = 1 + _starts(file, now)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps({"progress": now, "starts": number}).encode())
    return number


def _starts(file: Path, now: str) -> int:
    """Those before this one; none where the file is not there or damaged."""
    try:
        known = json.loads(file.read_text())
        starts = known["starts"] if known["progress"] == now else 0
    except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
        return 0
    return starts if isinstance(starts, int) else 0


def progress(store: Store, nodes: Sequence[Node]) -> str:
    """What changes whenever a checkpoint, an answer or an artifact is kept."""
    found = []
    for node in nodes:
        if store.has(node):
            found.append("made")
            continue
        work, cells = store.work(node), store.cells(node)
        whole = sorted(p.parent.name for p in work.glob(f"checkpoint-*/{WHOLE}")) if work else []
        kept = [*(cells.glob("*.jsonl") if cells else [])]
        kept += [path for pattern in KEPT for path in work.glob(pattern)] if work else []
        found.append(f"{whole} {sum(_size(path) for path in kept if path.name != LIVE)}")
    return "\n".join(found)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # an attempt that is still alive has moved it
        return 0
