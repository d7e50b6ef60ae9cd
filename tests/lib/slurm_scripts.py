"""Scripts of job arrays for made-up tasks, and what bash and sbatch read in them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from tiny_run import typed

from src.graph import Task
from src.launcher import Point
from src.pipeline import Run
from src.slurm.arrays import Array, Planner
from src.slurm.ledger import Submission
from src.slurm.script import Jobs

SAYS = """\
printf '%s\\0' "$@"
"""
NASTY = [
    "'", '"', "it's", "$(touch x)", "`touch x`", "a\nb", "a\n#SBATCH --comment=mine\nb", ";touch x", "&& touch x",
    "> x", "ü✓ 漢字", "-n", "--help", "%j_%a", "\\", "\\'", "a\\\nb", "", " ", "\t", "*", "~", "{a,b}", "!!", "#",
    "${HOME}", "a\rb", "0) words=() ;;", "EOF", "'\"'\"'", "$'\\n'", "[a,b]", "${oc.env:HOME}", "\x1b[31m",
    "\ufeff", "words=(", "esac",
]  # fmt: skip
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
TOKEN, NAME = "abcd1234", "it1-training"


def with_fields(value: Any, **changes: Any) -> Any:
    return dataclasses.replace(value, **changes)


@pytest.fixture(scope="module")
def run() -> Run:
    return typed("launcher=slurm")


def jobs_of(run: Run, at_once: int | None = None, **site: Any) -> Jobs:
    """As the launcher has them, with another site."""
    launcher: Any = run.launcher
    environment = {"PATH": "/bin", "HF_TOKEN": "hf_secret", "OTHER": "other secret"}
    return Jobs(with_fields(launcher.site, **site), launcher.jobs, at_once, 300, environment)


def points_of(run: Run, *words: Sequence[str]) -> list[Point]:
    return [Point(run, list(own), lambda: pytest.fail("composed"), tuple(own)) for own in words]


def arrays_of(*tasks: Task, largest: int = 1001) -> list[Array]:
    planner = Planner({}, largest, largest)
    planner.add(tasks)
    return planner.arrays


def told_of(array: Array, folder: str = "/runs/x/slurm", after: str = "") -> Submission:
    return Submission(TOKEN, array.name, folder, {index: [] for index in array.elements}, after, "77")


def said(text: str, place: Path, index: int | None) -> list[str]:
    """What task.sh gets when bash carries the script out as this element."""
    (place / "slurm").mkdir(exist_ok=True)
    (place / "slurm" / "task.sh").write_text(SAYS)
    (place / "job.sbatch").write_bytes(text.encode())
    env = {"PATH": os.environ["PATH"]} | ({} if index is None else {"SLURM_ARRAY_TASK_ID": str(index)})
    done = subprocess.run(["bash", "job.sbatch"], cwd=place, env=env, capture_output=True, check=True)
    assert done.stderr == b"" and sorted(p.name for p in place.iterdir()) == ["job.sbatch", "slurm"]
    return done.stdout.decode().split("\0")[:-1]


def options(text: str) -> dict[str, str]:
    """What sbatch reads: the lines before the first that is no comment."""
    head = [line for line in text.partition("\nset -eu\n")[0].splitlines() if line.startswith("#SBATCH ")]
    return {key: value for key, _, value in (line.removeprefix("#SBATCH --").partition("=") for line in head)}
