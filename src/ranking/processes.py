"""A queue worked off by several processes: one a device here, or tasks of srun on several nodes.

Every process (worker.py) takes each n-th batch and writes its scores into the shared cells.
"""

from __future__ import annotations

import os
import pickle
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.cells import CELLS
from src.children import check_allocation, cores, prepare_child, srun
from src.config import UserError
from src.ranking.work import Opener, Queue, Work

ROOT = Path(__file__).parents[2]
LOOK_S = 0.2
"""Between two looks at the processes."""
END_S = 120.0
"""For the batch a worker is in; one that hangs is killed then."""


@dataclass(frozen=True, eq=False)
class Worker:
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
    running: dict[Worker, subprocess.Popen[bytes]] = {}
    try:
        for worker in workers:
            running[worker] = _started(worker)
        while None in [process.poll() for process in running.values()]:
            _raise_if_dead(running)
            look()
            time.sleep(LOOK_S)
        _raise_if_dead(running)
    finally:
        _end(list(running.values()))
    look()


def workers_of(work: Work, job: Path) -> list[Worker]:
    """The processes to start: `work.workers` here, or one srun that starts as many on `work.nodes` machines."""
    each = work.workers // work.nodes
    module = [sys.executable, "-m", "src.ranking.worker", str(job)]
    shared = dict(os.environ)
    if work.device == "cpu":
        shared.setdefault("OMP_NUM_THREADS", str(max(1, cores() // each)))
    if work.nodes > 1:
        check_allocation("hardware.ranking.nodes", work.nodes, ("srun",))
        command = srun(work.nodes, each, shlex.join(module))
        return [Worker("a task of srun", command, shared, job.with_name("srun.log"))]
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
        return subprocess.Popen(worker.command, cwd=ROOT, env=worker.environment, stderr=log, preexec_fn=prepare_child)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """All at once; they save what they have."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + END_S
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _raise_if_dead(running: dict[Worker, subprocess.Popen[bytes]]) -> None:
    for worker, process in running.items():
        if process.poll():
            raise UserError(
                f"rank: {worker.name} (process {process.pid}) ended with exit code {process.returncode}: "
                f"{_last_words(worker.log)} ({worker.log}); finished scores are kept, the same command goes on"
            )


def _last_words(log: Path) -> str:
    """Its last line that is not SLURM's."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    own = [line for line in lines if not line.startswith(("srun: ", "slurmstepd: "))]
    return (own or lines or ["it said nothing"])[-1]
