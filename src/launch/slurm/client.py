"""SLURM's own commands, and the queue as they show it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

from src.kernel.config import Fault, UserError

TIMEOUT_S = 300
"""Limit of a command; sbatch itself tries for two minutes to get into a full queue."""
UNREACHABLE = re.compile("contact|timed out|connect|communicat", re.IGNORECASE)
"""Matches the error of a command when the controller does not answer."""
NEVER = "DependencyNeverSatisfied"
"""The reason of a job that SLURM is about to cancel."""


class NoCluster(UserError):
    """This machine belongs to no cluster."""


_REMEDIES: dict[type[UserError], str] = {
    NoCluster: "launcher=slurm needs a machine that submits jobs",
    Fault: "the same command resumes when `sinfo` answers",
    UserError: "mend launcher.site or launcher.jobs as it says, or ask the site; the same command resumes",
}


def slurm(*words: str, stdin: str | None = None) -> str:
    """Return what a command prints.

    Raises UserError with its last line when it fails, Fault when the controller does not answer, NoCluster where there
    is none.
    """
    try:
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, errors="replace", env=environment(), timeout=TIMEOUT_S
        )
        if done.returncode == 0:
            return done.stdout
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        failure = f"{words[0]}: {lines[-1].removeprefix(f'{words[0]}: ')}"
        kind = NoCluster if "configuration source" in failure else Fault if UNREACHABLE.search(failure) else UserError
    except FileNotFoundError:
        kind, failure = NoCluster, f"no {words[0]} on PATH"
    except subprocess.TimeoutExpired:
        kind, failure = Fault, f"{words[0]} has not answered within {TIMEOUT_S} s"
    raise kind(f"launcher: {failure}; {_REMEDIES[kind]}")


def environment() -> dict[str, str]:
    """Return this process's environment without a job's variables, which sbatch would take for options."""
    prefixes = ("SLURM_", "SBATCH_", "SRUN_")
    return {key: value for key, value in os.environ.items() if key == "SLURM_CONF" or not key.startswith(prefixes)}


class Queued(NamedTuple):
    """A job, or an element of an array, that has not ended."""

    job: str
    """Its number as `afterok` and `scancel` know it: 77, or 77_3."""
    state: str
    reason: str
    """Why it waits, in SLURM's word."""


Queue = Mapping[tuple[str, str], Queued]
"""Jobs by their comment, which is the token of their submission, and their index in an array, which may be empty."""


def queue() -> Queue:
    """Return this user's jobs, elements of arrays one by one, without those that have ended or are about to."""
    text = slurm("squeue", "--me", "--noheader", "--array", "--format=%F|%K|%T|%r|%k")
    line = re.compile(r"^([0-9]+)\|(N/A|[0-9]{1,9})\|([^|\n]*)\|([^|\n]*)\|(.*)$", re.ASCII | re.MULTILINE)
    jobs: dict[tuple[str, str], Queued] = {}
    for job, index, state, reason, token in line.findall(text):
        if state != "COMPLETING" and reason != NEVER:  # cancelled jobs may take a while to save
            index = index.removeprefix("N/A")
            jobs[token, index] = Queued(f"{job}_{index}" if index else job, state, reason)
    return jobs
