"""A queue worked off by several processes: one a device here, or tasks of srun on several nodes.

Every process (worker.py) takes each n-th batch and writes its scores into the shared cells.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from src.cells import CELLS
from src.config import UserError
from src.ranking.work import Opener, Queue, Work

ROOT = Path(__file__).parents[2]
LOOK_S = 0.2
"""Between two looks at the processes."""


class Worker(NamedTuple):
    """A command, its environment, and where its stderr goes."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path


def run_in_processes(open_scorer: Opener, queue: Queue, work: Work, folder: Path, look: Callable[[], Any]) -> None:
    """Work the queue off; `look` is called now and then and at the end.

    Raises UserError when a worker dies, naming it; the others are ended, what they finished is saved.
    """
    job = (folder / "job.pickle").resolve()
    job.write_bytes(pickle.dumps((open_scorer, queue, work, (folder / CELLS).resolve())))
    workers = workers_of(work, job)
    with ExitStack() as stack:
        running = [stack.enter_context(_started(worker)) for worker in workers]
        try:
            while any(process.poll() is None for process in running):
                _raise_if_dead(workers, running)
                look()
                time.sleep(LOOK_S)
            _raise_if_dead(workers, running)
        finally:
            for process in running:
                process.send_signal(signal.SIGTERM)
    look()


def workers_of(work: Work, job: Path) -> list[Worker]:
    """The processes to start: `work.workers` here, or one srun that starts as many on `work.nodes` machines."""
    each = work.workers // work.nodes
    module = [sys.executable, "-m", "src.ranking.worker", str(job)]
    shared = dict(os.environ)
    if work.device == "cpu":
        shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // each)))
    if work.nodes > 1:
        srun = ["srun", "--kill-on-bad-exit=1", "--nodes", str(work.nodes), "--ntasks", str(work.workers)]
        srun += ["--ntasks-per-node", str(each)]
        return [Worker("tasks of srun", [*srun, *module], shared, job.with_name("srun.log"))]
    return [
        Worker(
            f"worker {number}",
            module,
            shared | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)},
            job.with_name(f"worker{number}.log"),
        )
        for number in range(each)
    ]


def _started(worker: Worker) -> subprocess.Popen[bytes]:
    with worker.log.open("wb") as log:
        try:
            return subprocess.Popen(worker.command, cwd=ROOT, env=worker.environment, stderr=log)
        except FileNotFoundError:
            raise UserError(
                f"ranking: {worker.command[0]} is not on PATH; several nodes are reached through it"
            ) from None


def _raise_if_dead(workers: list[Worker], running: list[subprocess.Popen[bytes]]) -> None:
    for worker, process in zip(workers, running, strict=True):
        if process.returncode:
            said = (worker.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(
                f"rank: {worker.name} (process {process.pid}) ended with exit code {process.returncode}: {said}; "
                "finished scores are kept, the same command goes on from there"
            )
