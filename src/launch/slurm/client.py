"""SLURM's own commands, and the queue as they show it."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

from src.kernel.config import Fault, UserError

TIMEOUT_S = 300
"""sbatch itself tries for two minutes to get into a full queue."""
AWAY = re.compile("contact|timed out|connect|communicat", re.IGNORECASE)
"""What a command says when the controller does not answer."""


class NoCluster(UserError):
    """This machine belongs to no cluster."""


_REMEDIES: dict[type[UserError], str] = {
    NoCluster: "launcher=slurm needs a machine that submits jobs",
    Fault: "the same command goes on when `sinfo` answers",
    UserError: "mend launcher.site or launcher.jobs as it says, or ask the site; the same command goes on",
}


def slurm(*words: str, stdin: str | None = None) -> str:
    """Returns what a command prints.

    Raises UserError with its last line when it fails, Fault when the controller does not answer, NoCluster where there
    is none.
    """
    kind, failure = UserError, ""
    try:
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, errors="replace", env=environment(), timeout=TIMEOUT_S
        )
        if done.returncode == 0:
            return done.stdout
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        failure = f"{words[0]}: {lines[-1].removeprefix(f'{words[0]}: ')}"
        kind = NoCluster if "configuration source" in failure else Fault if AWAY.search(failure) else UserError
    except FileNotFoundError:
        kind, failure = NoCluster, f"no {words[0]} on PATH"
    except subprocess.TimeoutExpired:
        kind, failure = Fault, f"{words[0]} has not answered within {TIMEOUT_S} s"
    raise kind(f"launcher: {failure}; {_REMEDIES[kind]}")


def environment() -> dict[str, str]:
    """Returns this process's environment without a job's variables, which sbatch would take for options."""
    return {
        key: value
        for key, value in os.environ.items()
        if key == "SLURM_CONF" or not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))
    }


@dataclass(frozen=True)
class Queued:
    """A job, or an element of an array, that has not ended."""

    job: str
    """Its number as `afterok` and `scancel` know it: 77, or 77_3."""
    state: str
    reason: str
    """Why it waits, in SLURM's word."""
    token: str
    """The job's comment: the token of its submission."""


def queue() -> list[Queued]:
    """Returns this user's jobs that have not ended, elements of arrays one by one."""
    text = slurm("squeue", "--me", "--noheader", "--array", "--format=%F|%K|%T|%r|%k")
    line = re.compile(r"^([0-9]+)\|(N/A|[0-9]{1,9})\|([^|\n]*)\|([^|\n]*)\|(.*)$", re.ASCII | re.MULTILINE)
    return [Queued(f"{job}_{index}".removesuffix("_N/A"), *rest) for job, index, *rest in line.findall(text)]
