"""A job worked off by several processes: here, or as tasks of srun on several nodes.

Each process (worker.py) is told its number and how many there are, and writes what it finds where the job says.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from src.kernel.children import check_allocation, cores, killed_by, prepare_child, srun
from src.kernel.config import Device, Fault, UserError
from src.kernel.handover import hand_over

ROOT = Path(__file__).parents[2]
LOOK_S = 0.2
"""Between two looks at the processes."""
END_S = 120.0
"""For what a worker is in the midst of; one that hangs is killed then."""
REFUSED = 2
"""The exit code of a worker that tells a mistake of the user."""


class Job(Protocol):
    """Can be pickled."""

    def __call__(self, number: int, count: int) -> None:
        """The share of worker `number` of `count`. Raises UserError."""
        ...


@dataclass(frozen=True)
class Crew:
    """How many processes there are, and where."""

    title: str
    """What they do: begins their complaints."""
    key: str
    """The config group that says the rest."""
    count: int
    nodes: int
    """Machines they are on; more than one are reached through srun."""
    device: Device
    devices_each: int = 1
    """CUDA devices a process takes."""


@dataclass(frozen=True, eq=False)
class Worker:
    """A command, its environment, and where its stderr goes."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path


def run_in_processes(job: Job, crew: Crew, folder: Path, look: Callable[[], Any]) -> None:
    """Work the job off; `look` is called now and then and at the end.

    Raises when a worker dies, naming it: UserError for a mistake of the user, or else Fault. The others are ended, and
    save what they have.
    """
    file = hand_over(folder, (job, crew))
    running: dict[Worker, subprocess.Popen[bytes]] = {}
    try:
        for worker in workers_of(crew, file):
            running[worker] = _started(worker)
        while None in [process.poll() for process in running.values()]:
            _raise_if_dead(crew, running)
            look()
            time.sleep(LOOK_S)
        _raise_if_dead(crew, running)
    finally:
        _end(list(running.values()))
    look()


def workers_of(crew: Crew, file: Path) -> list[Worker]:
    """The processes to start: `crew.count` here, or one srun that starts as many on `crew.nodes` machines."""
    each = crew.count // crew.nodes
    module = [sys.executable, "-m", "src.kernel.worker", str(file)]
    shared = dict(os.environ)
    if crew.device == "cpu":
        shared.setdefault("OMP_NUM_THREADS", str(max(1, cores() // each)))
    if crew.nodes > 1:
        check_allocation(f"{crew.key}.nodes", crew.nodes, ("srun",))
        name, *words = srun(crew.nodes, each, shlex.join(module))
        command = [name, "--label", *words]  # each line begins with the task that said it
        return [Worker("a task of srun", command, shared, file.with_name("srun.log"))]
    return [
        Worker(
            f"worker {number}",
            module,
            shared | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)},
            file.with_name(f"worker{number}.log"),
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


def _raise_if_dead(crew: Crew, running: dict[Worker, subprocess.Popen[bytes]]) -> None:
    for worker, process in running.items():
        if code := process.poll():
            lines = [line for line in worker.log.read_text(errors="replace").splitlines() if line.strip()]
            ended = f"ended with exit code {code}" if code > 0 else killed_by(-code)
            kind = UserError if (_task_code(lines) or code) == REFUSED else Fault
            raise kind(
                f"{crew.title}: {worker.name} (process {process.pid}) {ended}: "
                f"{_last_words(lines)} ({worker.log}); what was finished is kept, the same command goes on"
            )


def _task_code(lines: list[str]) -> int | None:
    """Of the first task that srun says has failed: srun's own is the largest, of those that it killed too."""
    found = re.search(r"[Ee]xit code (\d+)", _dead_task(lines)[1])
    return int(found[1]) if found else None


def _last_words(lines: list[str]) -> str:
    """The log's last line; of srun's the line that names the task, and the last one of that task."""
    task, told = _dead_task(lines)
    own = [line for line in lines if line.startswith(task) and not line.startswith(("srun: ", "slurmstepd: "))]
    return told + (own or lines or ["it said nothing"])[-1]


def _dead_task(lines: list[str]) -> tuple[str, str]:
    """How the lines begin of the first task that srun says has failed, and what srun says."""
    for line in lines:
        found = re.match(r"srun: error: .*\btasks? (\d+)", line)
        if found:
            return f"{found[1]}: ", f"{line}; "
    return "", ""
