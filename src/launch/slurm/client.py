"""SLURM's own commands, and what is read of their words."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

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
    """This process's environment without the variables of a job around it, which sbatch would take for options."""
    return {
        key: value
        for key, value in os.environ.items()
        if key == "SLURM_CONF" or not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))
    }


def submit(script: Path) -> str:
    """Submits a script and returns the job's number. Raises UserError where sbatch names none."""
    said = slurm("sbatch", "--parsable", str(script))
    job, _, _ = (said.splitlines() or [""])[-1].strip().partition(";")
    if not re.fullmatch(r"[0-9]{1,18}", job, re.ASCII):
        raise UserError(
            f"launcher: sbatch --parsable says {said.strip()[:60]!r}, no number of a job; is it SLURM's? "
            f"`squeue --me` shows whether {script} was submitted"
        )
    return job


@dataclass(frozen=True)
class Queued:
    """A job, or an element of an array, that has not ended."""

    job: str
    """As `afterok` knows it: 77, or 77_3."""
    state: str
    reason: str
    """Why it waits, in SLURM's word."""
    token: str
    """The job's comment: the token of its submission."""

    @property
    def index(self) -> int | None:
        """Its index in the array; None for a job that is no array."""
        index = self.job.partition("_")[2]
        return int(index) if index else None


def queue() -> list[Queued]:
    """Returns this user's jobs that have not ended, elements of arrays one by one."""
    text = slurm("squeue", "--me", "--noheader", "--array", "--format=%F|%K|%T|%r|%k")
    jobs = list[Queued]()
    for line in text.splitlines():  # a comment of somebody's own may go on in the next line
        if found := re.fullmatch(r"([0-9]+)\|(N/A|[0-9]{1,9})\|([^|]*)\|([^|]*)\|(.*)", line, re.ASCII):
            job, index, state, reason, token = found.groups()
            jobs.append(Queued(job if index == "N/A" else f"{job}_{index}", state, reason, token))
    return jobs


@dataclass(frozen=True)
class Limits:
    """How much the cluster takes."""

    array: int
    """Elements of one array."""
    jobs: int
    """Jobs of one user that have not ended."""


DEFAULT_LIMITS = Limits(array=1001, jobs=9999)
"""SLURM's own."""


def limits() -> Limits:
    """Asks the controller and, where there is accounting, its database."""
    text = slurm("scontrol", "show", "config")
    pattern = re.compile(r"^(MaxArraySize|MaxJobCount) *= *([0-9]{1,18}) *$", re.ASCII | re.MULTILINE)
    numbers = {name: int(number) for name, number in pattern.findall(text)}
    if len(numbers) < 2:
        raise UserError("launcher: scontrol show config says no MaxArraySize or no MaxJobCount; is it SLURM's?")
    of_user = _submit_limits() if "accounting_storage/slurmdbd" in text else []
    jobs = min([numbers["MaxJobCount"] - 1, *of_user])  # the one that would make it full is refused
    return Limits(max(1, numbers["MaxArraySize"]), max(1, jobs))


def _submit_limits() -> list[int]:
    """Returns MaxSubmitJobs of this user's associations; none while the database is away."""
    with suppress(UserError, KeyError):
        user = pwd.getpwuid(os.getuid()).pw_name
        text = slurm("sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=MaxSubmitJobs")
        return [int(line) for line in text.split() if re.fullmatch(r"[0-9]{1,18}", line, re.ASCII)]
    return []
