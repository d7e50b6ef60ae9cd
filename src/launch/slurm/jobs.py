"""What a cluster wants of a job, what a job wants of the cluster, and the script of a job array.

A script is readable, and `sbatch <script>` submits it again.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, PositiveInt

from src.experiment.point import Point
from src.experiment.run import Run
from src.kernel.artifact import Job
from src.kernel.config import Free, UserError, config
from src.launch.slurm.arrays import OWN, Array
from src.launch.slurm.ledger import Submission, keys_word

ROOT = Path(__file__).parents[3]
Word = Annotated[str, Field(pattern=r"^[\w.,:=+/@&|*()\[\]-]+$")]
"""A word that may stand behind an option of sbatch: no blank, no quote, no line's end."""


@config
class Resources:
    """What a job of one kind takes."""

    minutes: Free[PositiveInt]
    cpus: Free[PositiveInt]
    """Cores for each GPU, or all cores where there is none."""
    memory_gb: Free[PositiveInt | None]
    """Memory of a node; null: the cluster's default."""
    gpus: Free[Annotated[int, Field(ge=0)] | None] = None
    """GPUs of a node; null: what the hardware says of the stage."""
    partition: Free[Word | None] = None
    qos: Free[Word | None] = None
    constraint: Free[Word | None] = None


@config
class Site:
    """A cluster."""

    partition: Free[Word | None]
    account: Free[Word | None]
    qos: Free[Word | None]
    constraint: Free[Word | None]
    gpu: Free[Word]
    """The name of a GPU in --gres."""
    setup: Free[list[str]]
    """Lines of shell before the command: the site's own code."""
    prefix: Free[list[str]]
    """Words before the command, such as those of a container."""
    python: Free[str | None]
    """The interpreter on the nodes; null: the one that submits."""
    export: Free[list[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]]]
    """Names of environment variables that jobs get."""
    setup_here: Free[bool]
    """Whether models and prompts are fetched where the command is given."""


@config
class Jobs:
    """The jobs of a submission."""

    site: Free[Site]
    at_once: Free[PositiveInt | None]
    """Elements of an array that run at a time."""
    warn_seconds: Free[PositiveInt]
    """Seconds before its limit at which a job saves and goes back into the queue."""
    jobs: Free[dict[Job, Resources]]

    def __post_init__(self) -> None:
        for job, resources in self.jobs.items():
            if self.warn_seconds >= resources.minutes * 60:
                minutes = f"jobs.{job}.minutes is {resources.minutes}"
                raise ValueError(f"warn_seconds {self.warn_seconds} is no time to work in: {minutes}")


class Shape(NamedTuple):
    """The machine that a job takes."""

    nodes: int
    gpus: int
    """GPUs of each node."""
    cpus: int
    """Cores of each node."""


def shape(job: Job, run: Run, resources: Resources) -> Shape:
    """Gives training whole nodes, answers the devices of one engine, and what runs no model no GPU."""
    hardware = run.hardware
    devices, engine = hardware.devices, hardware.engine
    one = int(devices.device == "cuda")
    of_engine = engine.devices_each if engine.device == "cuda" else 0
    wanted = {
        "generation": of_engine,
        "ranking": one,
        "reference": one,
        "training": one * devices.count // devices.nodes,
        "evaluation": max(of_engine, one),
    }.get(job, 0)
    gpus = wanted if resources.gpus is None else resources.gpus
    if gpus < wanted:
        raise UserError(f"launcher.jobs.{job}.gpus: {gpus}, but hardware={hardware.name} takes {wanted} a node for it")
    return Shape(devices.nodes if job == "training" else 1, gpus, resources.cpus * max(1, gpus))


def wants(array: Array, points: Sequence[Point], jobs: Jobs) -> tuple[Resources, Shape]:
    """Returns what each job of an array takes."""
    job = array.task.job
    return jobs.jobs[job], shape(job, points[array.task.point].run, jobs.jobs[job])


def script(array: Array, submission: Submission, after: str, points: Sequence[Point], jobs: Jobs) -> str:
    """Writes the script of an array that waits for `after`, in the words of --dependency."""
    resources, needs = wants(array, points, jobs)
    site, several = jobs.site, len(array.elements) > 1
    log = submission.log("%a" if several else next(iter(array.elements)))
    exported = dict.fromkeys(name for name in (*site.export, "SLURM_CONF") if name in os.environ)
    options = [f"job-name={submission.name}", f"comment={submission.token}", f"chdir={ROOT}", f"output={log}"]
    for path in (ROOT, submission.folder):
        if not re.fullmatch(r"[\w./+=,@:-]+", str(path)):
            raise UserError(f"launcher: SLURM cannot take {str(path)!r}; use a folder without blanks, quotes and %")
    options += ["open-mode=append", f"export={','.join(exported) or 'NONE'}", "kill-on-invalid-dep=yes"]
    options += [f"dependency={after}"] if after else []
    options += node_options(site, resources, needs)
    if several:
        options.append(f"array={','.join(map(str, array.elements))}" + (f"%{jobs.at_once}" if jobs.at_once else ""))
    options += ["requeue", f"signal=B:USR1@{jobs.warn_seconds}"]
    python = shlex.join([*site.prefix, site.python or sys.executable, "-m", "src.main"])
    one_process = " hardware.generation.workers=1 hardware.ranking.workers=1" if needs.gpus else ""
    lines = [
        "#!/usr/bin/env bash",
        f"# `sbatch {submission.script}` submits it again.",
        *(f"#SBATCH --{option}" for option in options),
        "set -eu",
        "trap 'export WARNED=1' USR1  # before task.sh hears of it",
        *site.setup,
        *_words(array, points),
        f'exec bash slurm/task.sh {python} "${{words[@]}}" launcher=allocation launcher.alone=true{one_process}',
    ]
    return "\n".join(lines) + "\n"


def node_options(site: Site, resources: Resources, needs: Shape) -> list[str]:
    """Returns the options that say what a job wants of its nodes, without the dashes."""
    options = [f"time={resources.minutes}", f"nodes={needs.nodes}", "ntasks-per-node=1", f"cpus-per-task={needs.cpus}"]
    options += [f"gres={site.gpu}:{needs.gpus}"] if needs.gpus else []
    if needs.nodes > 1:  # all that they have
        options += ["exclusive", f"mem={resources.memory_gb or 0}G"]
    elif resources.memory_gb:
        options += [f"mem={resources.memory_gb}G"]
    chosen = {name: getattr(resources, name) or getattr(site, name) for name in ("partition", "qos", "constraint")}
    return options + [f"{name}={value}" for name, value in (chosen | {"account": site.account}).items() if value]


def dependency(array: Array, submitted: Mapping[Array, str]) -> str:
    """Says that everything named must succeed, and of what is matched the element of the same index.

    `submitted`: the numbers of the jobs that arrays before it became.
    """
    clauses: dict[str, list[str]] = {"afterok": [], "aftercorr": []}
    for other, index in array.waits:
        job = submitted[other] if isinstance(other, Array) else other
        plain = index in (None, OWN) or (isinstance(other, Array) and len(other.elements) == 1)
        clauses["aftercorr" if index == OWN else "afterok"].append(job if plain else f"{job}_{index}")
    return ",".join(":".join([kind, *dict.fromkeys(jobs)]) for kind, jobs in clauses.items() if jobs)


def _words(array: Array, points: Sequence[Point]) -> list[str]:
    """Returns lines that put the overrides of an element into `words`, by its index."""
    first, (task, part) = next(iter(array.elements.items()))
    by_part = task.parts > 1 and len({element.task for element in array.elements.values()}) == 1
    lines = [f"index=${{SLURM_ARRAY_TASK_ID:-{first}}}", 'case "$index" in']
    for index, (own, _) in array.elements.items():
        if by_part and index != first:
            continue  # the same words, but for the part
        words = overrides(points[own.point].overrides)
        words += [f"only=[{','.join(node.name for node in own.nodes)}]"] if own.nodes else []
        words.append(f"launcher.keys={keys_word(own.nodes or points[own.point].nodes)}")
        lines.append(f"{'*' if by_part else index}) words=({shlex.join(words)}) ;;")
    lines += [] if by_part else ['*) echo "no element $index" >&2; exit 2 ;;']
    lines.append("esac")
    if task.parts > 1:
        lines.append(f'words+=("part={"$((index + 1))" if by_part else part + 1}/{task.parts}")')
    return lines


def overrides(words: Sequence[str]) -> list[str]:
    """Leaves out the overrides that say how a point is launched."""
    return [word for word in words if not word.lstrip("+~").startswith(("launcher=", "launcher.", "slurm@"))]
