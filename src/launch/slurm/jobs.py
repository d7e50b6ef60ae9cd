"""The site, the resources of each kind of job, and the script of a job array, which `sbatch <script>` submits again."""

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
from src.kernel.artifact import Job
from src.kernel.config import Free, UserError, config, matching
from src.launch.slurm.arrays import OWN, Array
from src.launch.slurm.ledger import Submission, keys_word

ROOT = Path(__file__).parents[3]
Word = Annotated[str, matching(r"[\w.,:=+/@&|*()\[\]-]+", "sbatch wants one word, without blanks and quotes")]
"""A word that may stand behind an option of sbatch: no blank, no quote, no line's end."""


@config
class Resources:
    """Resources of a job of one kind."""

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
    export: Free[list[Annotated[str, matching(r"[A-Za-z_]\w*", "not the name of an environment variable")]]]
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
                within = f"{resources.minutes * 60:,} s (jobs.{job}.minutes)"
                raise ValueError(f"warn_seconds: {self.warn_seconds} s leaves no working time within {within}")


class Machine(NamedTuple):
    """The machine that a job takes."""

    nodes: int
    gpus: int
    """GPUs of each node."""
    cpus: int
    """Cores of each node."""


def wants(array: Array, points: Sequence[Point], jobs: Jobs) -> tuple[Resources, Machine]:
    """Return what each job of an array takes.

    Training takes whole nodes, sampling the devices of one engine, and what runs no model takes no GPU. Raises
    UserError where the config says fewer GPUs than that.
    """
    job, hardware = array.task.job, points[array.task.point].run.hardware
    resources, devices, engine = jobs.jobs[job], hardware.devices, hardware.engine
    one = int(devices.device == "cuda")
    of_engine = engine.devices_each if engine.device == "cuda" else 0
    sizes = {"generation": of_engine, "ranking": one, "reference": one, "evaluation": max(of_engine, one)}
    wanted = (sizes | {"training": one * devices.count // devices.nodes}).get(job, 0)
    gpus = wanted if resources.gpus is None else resources.gpus
    if gpus < wanted:
        raise UserError(f"launcher.jobs.{job}.gpus: {gpus}, but hardware={hardware.name} takes {wanted} per node")
    return resources, Machine(devices.nodes if job == "training" else 1, gpus, resources.cpus * max(1, gpus))


def check_folder(folder: str) -> None:
    """Raise UserError where the header of a script cannot name its folder, or that of the code."""
    for path in (str(ROOT), folder):
        if not re.fullmatch(r"[\w./+=,@:-]+", path):
            raise UserError(f"launcher: SLURM cannot take {path!r}; use a folder without blanks, quotes and %")


def script(array: Array, submission: Submission, after: str, points: Sequence[Point], jobs: Jobs) -> str:
    """Return the script of an array that waits for `after`, in the words of --dependency."""
    resources, machine = wants(array, points, jobs)
    site, several = jobs.site, len(array.elements) > 1
    check_folder(submission.folder)
    exported = dict.fromkeys(name for name in (*site.export, "SLURM_CONF") if name in os.environ)
    options = [
        f"job-name={submission.name}",
        f"comment={submission.token}",
        f"chdir={ROOT}",
        f"output={submission.log('%a' if several else next(iter(array.elements)))}",
        "open-mode=append",
        f"export={','.join(exported) or 'NONE'}",
        "kill-on-invalid-dep=yes",
        *([f"dependency={after}"] if after else []),
        *node_options(site, resources, machine),
        "requeue",
        f"signal=B:USR1@{jobs.warn_seconds}",
    ]
    if several:
        options.append(f"array={','.join(map(str, array.elements))}" + (f"%{jobs.at_once}" if jobs.at_once else ""))
    python = shlex.join([*site.prefix, site.python or sys.executable, "-m", "src.main"])
    one_process = " hardware.generation.workers=1 hardware.ranking.workers=1" if machine.gpus else ""
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


def node_options(site: Site, resources: Resources, machine: Machine) -> list[str]:
    """Return the options that say what a job wants of its nodes, without the dashes."""
    options = [f"time={resources.minutes}", f"nodes={machine.nodes}"]
    options += ["ntasks-per-node=1", f"cpus-per-task={machine.cpus}"]
    options += [f"gres={site.gpu}:{machine.gpus}"] if machine.gpus else []
    if machine.nodes > 1:  # all that they have
        options += ["exclusive", f"mem={resources.memory_gb or 0}G"]
    elif resources.memory_gb:
        options += [f"mem={resources.memory_gb}G"]
    chosen = {name: getattr(resources, name) or getattr(site, name) for name in ("partition", "qos", "constraint")}
    return options + [f"{name}={value}" for name, value in (chosen | {"account": site.account}).items() if value]


def dependency(array: Array, submitted: Mapping[Array, str]) -> str:
    """Return the words of --dependency: what is named must succeed, and of what is matched, the element of one index.

    `submitted`: the numbers of the jobs that earlier arrays became.
    """
    clauses: dict[str, list[str]] = {"afterok": [], "aftercorr": []}
    for other, index in array.waits:
        job = submitted[other] if isinstance(other, Array) else other
        plain = index in (None, OWN) or (isinstance(other, Array) and len(other.elements) == 1)
        clauses["aftercorr" if index == OWN else "afterok"].append(job if plain else f"{job}_{index}")
    return ",".join(":".join([kind, *dict.fromkeys(jobs)]) for kind, jobs in clauses.items() if jobs)


def _words(array: Array, points: Sequence[Point]) -> list[str]:
    """Return lines of shell that put the overrides of an element into `words`, by its index."""
    lines = [f"index=${{SLURM_ARRAY_TASK_ID:-{next(iter(array.elements))}}}", 'case "$index" in']
    for index, (task, part) in array.elements.items():
        point, launches = points[task.point], ("launcher=", "launcher.", "slurm@")
        words = [word for word in point.overrides if not word.lstrip("+~").startswith(launches)]
        words += [f"only=[{','.join(node.name for node in task.nodes)}]"] if task.nodes else []
        words.append(f"launcher.keys={keys_word(task.nodes or point.nodes)}")
        words += [f"part={part + 1}/{task.parts}"] if task.parts > 1 else []
        lines.append(f"{index}) words=({shlex.join(words)}) ;;")
    return [*lines, '*) echo "no element $index" >&2; exit 2 ;;', "esac"]
