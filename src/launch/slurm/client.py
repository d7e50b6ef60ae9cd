"""SLURM's own commands."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from src.kernel.config import Fault, UserError

TIMEOUT_S = 120


AWAY = re.compile("contact|timed out|connect|communicat", re.IGNORECASE)
"""What a command says whose cluster does not answer."""


class NoCluster(UserError):
    """This machine knows of none."""


_REMEDIES: dict[type[UserError], str] = {
    NoCluster: "launcher=slurm needs a machine that submits jobs",
    Fault: "the same command goes on when `sinfo` answers",
    UserError: "mend launcher.site or launcher.jobs as it says, or ask the site",
}


def slurm(*words: str) -> str:
    """What a command says. Raises UserError with its last line when it fails, NoCluster where there is none to ask."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", env=environment(), timeout=TIMEOUT_S
        )
    except FileNotFoundError:
        raise NoCluster(f"launcher: no {words[0]} on PATH; launcher=slurm needs a machine that submits jobs") from None
    except subprocess.TimeoutExpired:
        raise Fault(f"launcher: {words[0]} has not answered within {TIMEOUT_S} s; try again") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        away = Fault if AWAY.search(said[-1]) else UserError
        kind = NoCluster if "configuration source" in said[-1] else away
        raise kind(f"launcher: {words[0]}: {said[-1].removeprefix(f'{words[0]}: ')}; {_REMEDIES[kind]}")
    return done.stdout


def submit(script: Path) -> str:
    """The number of the job. Raises UserError where sbatch names none."""
    said = slurm("sbatch", "--parsable", str(script))
    job, _, _ = (said.splitlines() or [""])[-1].strip().partition(";")
    if not re.fullmatch(r"[0-9]{1,18}", job, re.ASCII):
        told = f"sbatch --parsable says {said.strip()[:60]!r}, no number of a job"
        raise UserError(f"launcher: {told}; is it SLURM's? `squeue --me` shows whether {script} was submitted")
    return job


def environment() -> dict[str, str]:
    """Without what SLURM told the job around this process, which sbatch would take for options; with the cluster."""
    return {
        key: value
        for key, value in os.environ.items()
        if key == "SLURM_CONF" or not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))
    }


@dataclass(frozen=True)
class Queued:
    """A job, or an element of an array, that has not ended."""

    job: str
    """As `afterok` knows it: 77, or 77_3."""
    state: str
    reason: str
    token: str
    """What the submission wrote into its comment."""

    @property
    def index(self) -> int | None:
        """In its array; None: it is none."""
        element = self.job.partition("_")[2]
        return int(element) if element else None


def queue() -> list[Queued]:
    """The jobs of this user that have not ended, elements one by one."""
    found = slurm("squeue", "--me", "--noheader", "--array", "--format=%F|%K|%T|%r|%k")
    lines = (line.split("|", 4) for line in found.splitlines() if re.match(r"[0-9]+\|", line))
    return [_queued(*line) for line in lines if len(line) == 5]  # comments may go on in the next line


def _queued(job: str, element: str, state: str, reason: str, token: str) -> Queued:
    if element == "N/A":
        return Queued(job, state, reason, token)
    if not re.fullmatch(r"[0-9]{1,9}", element):
        raise UserError(f"launcher: squeue: {element!r} is no element of the array {job}; is it SLURM's?")
    return Queued(f"{job}_{element}", state, reason, token)


@dataclass(frozen=True)
class Limits:
    """What the cluster takes."""

    array: int
    """Elements of an array."""
    submitted: int | None
    """Jobs of a user that have not ended; None: no limit is known."""
    free: int | None = None
    """Jobs that the controller has room for beside everybody's, which it forgets some minutes after their end."""

    @property
    def most(self) -> int:
        """Jobs of one submission, with one for the rest."""
        return max(1, self.submitted - 2) if self.submitted else ENDLESS


ENDLESS = 10**9
DEFAULT_LIMITS = Limits(array=1001, submitted=None)
"""SLURM's own."""


def limits() -> Limits:
    settings = dict(
        re.split(r" *= *", line, maxsplit=1) for line in slurm("scontrol", "show", "config").splitlines() if "=" in line
    )
    array, jobs = _number(settings, "MaxArraySize"), _number(settings, "MaxJobCount")
    most = [jobs - 1]  # it refuses the one that would make it full
    there = len(slurm("squeue", "--noheader", "--array", "--states=all", "--format=%F").splitlines())
    free = most[0] - there
    if settings.get("AccountingStorageType") == "accounting_storage/slurmdbd":
        most += _of_account()
    return Limits(max(1, array), min(most), free)


def _number(settings: dict[str, str], name: str) -> int:
    told = settings.get(name, "")
    if not re.fullmatch(r"[0-9]{1,18}", told.strip()):
        raise UserError(f"launcher: scontrol show config: {name} is {told!r}, no number; is it SLURM's?")
    return int(told)


def _of_account() -> list[int]:
    with suppress(UserError, KeyError):  # a database that is away takes no job less
        user = pwd.getpwuid(os.getuid()).pw_name
        said = slurm("sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=MaxSubmitJobs")
        return [int(line) for line in said.split() if re.fullmatch(r"[0-9]{1,18}", line)]
    return []
