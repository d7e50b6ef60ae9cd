"""Processes that this one starts: they die with it, and on several nodes are the tasks of srun."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal

from src.kernel.config import UserError

_LIBC = ctypes.CDLL(None)
_SET_DEATH_SIGNAL = 1


def die_with_parent() -> None:
    """Linux: a process whose parent is killed is killed too, or it would go on writing."""
    parent = os.getppid()
    _LIBC.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed just before
        os._exit(1)


def prepare_child() -> None:
    """In a child before it starts: SLURM's early warning is for this process, the child would die of it."""
    die_with_parent()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def killed_by(number: int) -> str:
    """What signal `number` did to a process; the kernel sends SIGKILL where memory is short."""
    name = signal.Signals(number).name
    return f"was killed by {name}{'; was memory short?' if number == signal.SIGKILL else ''}"


def cores() -> int:
    """That this process may use: not all clusters bind a job to what it asked for."""
    own = len(os.sched_getaffinity(0))
    return min(own, int(os.environ.get("SLURM_CPUS_PER_TASK", own)))


def check_allocation(key: str, nodes: int, tools: tuple[str, ...]) -> None:
    """Raises UserError, naming `key`, outside a SLURM allocation of `nodes` nodes and where a tool is not on PATH."""
    allocated = os.environ.get("SLURM_JOB_NUM_NODES", "0")
    if int(allocated) != nodes:
        raise UserError(f"{key}: {nodes}, started on {allocated} SLURM nodes; use sbatch --nodes={nodes}")
    for tool in tools:
        if shutil.which(tool) is None:
            raise UserError(f"{key}: {nodes} nodes are started by {tool}, which is not on PATH")


def srun(nodes: int, tasks_per_node: int, line: str) -> list[str]:
    """The shell line `line` as tasks on every node of the allocation, all cores of a node shared out among them."""
    each = int(os.environ.get("SLURM_CPUS_ON_NODE", "1")) // tasks_per_node  # srun does not inherit them
    # All: sbatch --export=NAMES would hold for srun too, and keep what was set since from the tasks.
    words = ["srun", "--export=ALL", "--kill-on-bad-exit=1", "--nodes", str(nodes)]
    words += ["--ntasks", str(nodes * tasks_per_node)]
    words += ["--ntasks-per-node", str(tasks_per_node), "--cpus-per-task", str(max(1, each))]
    return [*words, "bash", "-c", f"trap '' USR1; exec {line}"]
