"""Processes that this one starts. They die with it, and on several nodes are the tasks of srun.

`run_in_processes` works a job off in several of them: each is this module with a file that holds the job, is told its
number and how many there are, and writes what it finds where the job says.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from src.kernel.config import Device, Fault, UserError
from src.kernel.faults import GOES_ON, explain

ROOT = Path(__file__).parents[2]
LOOK_S = 0.2
"""Seconds between two looks at the processes."""
END_S = 120.0
"""Seconds for what a worker is in the midst of; one that hangs is killed then."""
REFUSED, FAILED = 2, 3
"""Exit codes of a worker: a mistake of the user; the machine or the store has failed."""
_LIBC = ctypes.CDLL(None)
_SET_DEATH_SIGNAL = 1
_JOB = "job-{}.pickle"


# Children -----------------------------------------------------------------------------------------------------------


def die_with_parent() -> None:
    """Have Linux kill this process when its parent is killed, or it would go on writing."""
    parent = os.getppid()
    _LIBC.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed just before
        os._exit(1)


def prepare_child() -> None:
    """Prepare a child before it starts: SLURM's early warning is for this process, the child would die of it."""
    die_with_parent()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def killed_by(number: int) -> str:
    """Say what signal `number` did to a process; the kernel sends SIGKILL where memory is short."""
    name = signal.Signals(number).name
    return f"was killed by {name}{'; was memory short?' if number == signal.SIGKILL else ''}"


def cores() -> int:
    """Count the cores that this process may use: not all clusters bind a job to what it asked for."""
    bound = len(os.sched_getaffinity(0))
    return min(bound, int(os.environ.get("SLURM_CPUS_PER_TASK", bound)))


def check_allocation(key: str, nodes: int, tools: tuple[str, ...]) -> None:
    """Raise UserError, naming `key`, outside a SLURM allocation of `nodes` nodes or where a tool is not on PATH."""
    allocated = os.environ.get("SLURM_JOB_NUM_NODES", "0")
    if int(allocated) != nodes:
        raise UserError(f"{key}: {nodes}, started on {allocated} SLURM nodes; use sbatch --nodes={nodes}")
    for tool in tools:
        if shutil.which(tool) is None:
            raise UserError(f"{key}: {nodes} nodes are started by {tool}, which is not on PATH")


def srun(nodes: int, tasks_per_node: int, line: str) -> list[str]:
    """Return the command that runs a shell line as tasks on every node, all cores of a node shared out among them."""
    each = int(os.environ.get("SLURM_CPUS_ON_NODE", "1")) // tasks_per_node  # srun does not inherit them
    # All: sbatch --export=NAMES would hold for srun too, and keep what was set since from the tasks.
    words = ["srun", "--export=ALL", "--kill-on-bad-exit=1", "--nodes", str(nodes)]
    words += ["--ntasks", str(nodes * tasks_per_node)]
    words += ["--ntasks-per-node", str(tasks_per_node), "--cpus-per-task", str(max(1, each))]
    return [*words, "bash", "-c", f"trap '' USR1; exec {line}"]


def hand_over(folder: Path, job: Any) -> Path:
    """Write a job for a process to be started; what earlier ones left in the folder goes.

    A pickle runs whatever it says when it is read, and others may write in the store: so the file is named by its
    sha256, the name reaches the process by its command line, and nothing else is read.
    """
    data = pickle.dumps(job)
    for earlier in folder.glob(_JOB.format("*")):
        earlier.unlink(missing_ok=True)
    file = folder.resolve() / _JOB.format(hashlib.sha256(data).hexdigest())
    with file.open("xb") as opened:  # a new file: no link of somebody else's is written through
        opened.write(data)
    return file


def take_over(file: Path) -> Any:
    """Read a job. Raises Fault where the file is another than its name says."""
    data = file.read_bytes()
    if file.name != _JOB.format(hashlib.sha256(data).hexdigest()):
        raise Fault(f"{file}: not what was written there, so it is not read; who else writes in this folder?")
    return pickle.loads(data)


# A job in several processes -----------------------------------------------------------------------------------------


class Job(Protocol):
    """Can be pickled."""

    def __call__(self, number: int, count: int) -> None:
        """Do the share of worker `number` of `count`. Raises UserError."""
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
    running: dict[Worker, subprocess.Popen[bytes]] = {}
    try:
        for worker in workers_of(crew, hand_over(folder, (job, crew))):
            with worker.log.open("wb") as log:
                running[worker] = subprocess.Popen(
                    worker.command, cwd=ROOT, env=worker.environment, stderr=log, preexec_fn=prepare_child
                )
        while None in (codes := [process.poll() for process in running.values()]) and not any(codes):
            look()
            time.sleep(LOOK_S)
        for worker, process in running.items():
            if process.poll():
                raise _death(crew.title, worker, process)
    finally:
        _end(list(running.values()))
    look()


def workers_of(crew: Crew, job: Path) -> list[Worker]:
    """Return the processes to start: `crew.count` here, or one srun that starts as many on `crew.nodes` machines."""
    each = crew.count // crew.nodes
    module = [sys.executable, "-m", "src.kernel.processes", str(job)]
    shared = dict(os.environ)
    if crew.device == "cpu":
        shared.setdefault("OMP_NUM_THREADS", str(max(1, cores() // each)))
    if crew.nodes > 1:
        check_allocation(f"{crew.key}.nodes", crew.nodes, ("srun",))
        name, *words = srun(crew.nodes, each, shlex.join(module))
        command = [name, "--label", *words]  # each line begins with the task that said it
        return [Worker("a task of srun", command, shared, job.with_name("srun.log"))]
    numbered = [shared | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)} for number in range(each)]
    return [
        Worker(f"worker {number}", module, environment, job.with_name(f"worker{number}.log"))
        for number, environment in enumerate(numbered)
    ]


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask all to end at once; they save what they have."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + END_S
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _death(title: str, worker: Worker, process: subprocess.Popen[bytes]) -> UserError:
    """Return the one line for a worker that has failed: what it did, and the last it said."""
    code = process.returncode
    ended = f"ended with exit code {code}" if code > 0 else killed_by(-code)
    task_code, words = last_words(worker.log.read_text(errors="replace"))
    kind = UserError if (task_code or code) == REFUSED else Fault
    return kind(
        f"{title}: {worker.name} (process {process.pid}) {ended}: {words} ({worker.log}); "
        "what was finished is kept, the same command goes on"
    )


def last_words(log: str) -> tuple[int | None, str]:
    """Return a log's last line. Of srun's log: the code and the last line of the first task that failed.

    srun itself ends with the largest code, of tasks that it has killed too.
    """
    lines = [line for line in log.splitlines() if line.strip()] or ["it said nothing"]
    for line in lines:
        if task := re.match(r"srun: error: .*\btasks? (\d+)", line):
            code = re.search(r"[Ee]xit code (\d+)", line)
            of_task = [one for one in lines if one.startswith(f"{task[1]}: ")] or lines
            return int(code[1]) if code else None, f"{line}; {of_task[-1]}"
    return None, lines[-1]


# One of the processes -----------------------------------------------------------------------------------------------


def main(file: Path) -> None:
    """Do one worker's share of the job in the file."""
    prepare_child()  # before the imports, which take seconds
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends this one
    signal.signal(signal.SIGTERM, _save_and_exit)
    from src.kernel.progress import quiet_libraries

    quiet_libraries()
    try:
        job, crew = take_over(file)
        if crew.device == "cuda":
            devices = devices_of(int(os.environ["SLURM_LOCALID"]), crew, _visible())
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        job(int(os.environ["SLURM_PROCID"]), crew.count)
    except Exception as error:
        refused = isinstance(error, UserError)
        message = str(error) if refused else explain(error)
        if message is None:
            raise
        print(message.removesuffix(GOES_ON), file=sys.stderr, flush=True)
        sys.exit(REFUSED if refused and not isinstance(error, Fault) else FAILED)


def _save_and_exit(number: int, frame: FrameType | None) -> None:
    """Exit by an exception, so that what is finished is saved; a second signal does not disturb that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def devices_of(number: int, crew: Crew, visible: list[str]) -> list[str]:
    """Return the devices of worker `number` of a node. Of several nodes, SLURM may have given each task its own."""
    each = crew.devices_each
    if crew.nodes > 1 and len(visible) == each:
        return visible
    if (number + 1) * each > len(visible):
        raise UserError(f"{crew.key}.workers: worker {number} of a node that shows {len(visible)} CUDA devices")
    return visible[number * each : (number + 1) * each]


def _visible() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
