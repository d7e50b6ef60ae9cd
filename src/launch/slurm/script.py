"""The script of a job array: readable, and submitted again by `sbatch <script>`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.experiment.point import Point
from src.kernel.artifact import Job
from src.kernel.config import UserError
from src.launch.slurm.arrays import Array, Element
from src.launch.slurm.ledger import Submission, mark
from src.launch.slurm.site import Resources, Shape, Site, shape

ROOT = Path(__file__).parents[3]
FULL_MINUTES = 10
"""After which a full queue is asked again."""
PLAIN = re.compile(r"[\w./+=,@:-]+")


@dataclass(frozen=True)
class Jobs:
    """What the scripts of a submission have in common."""

    site: Site
    resources: Mapping[Job, Resources]
    at_once: int | None
    warn_seconds: int
    environment: Mapping[str, str]
    """Of the process that submits."""


def script(array: Array, told: Submission, points: Sequence[Point], jobs: Jobs) -> str:
    """Text of the script."""
    first = next(iter(array.elements.values())).task
    resources, count = jobs.resources[array.job], len(array.elements)
    needs = shape(array.job, points[first.point].run, resources)
    extra = [f"array={ranges(list(array.elements))}" + (f"%{jobs.at_once}" if jobs.at_once else "")] * (count > 1)
    extra += ["requeue", f"signal=B:USR1@{jobs.warn_seconds}"]
    options = _options(told, jobs, resources, needs) + extra
    run = f'exec bash slurm/task.sh {_python(jobs.site)} "${{words[@]}}" launcher=allocation launcher.alone=true'
    return _text(told, options, [*_prelude(jobs.site), *_words(array, told, points, needs), run])


def rest_script(told: Submission, command: Sequence[str], jobs: Jobs, done: Path) -> str:
    """Of a job that gives the command again, for what was never submitted; not in a container, which has no sbatch."""
    resources = jobs.resources["report"]
    options = _options(told, jobs, resources, Shape(nodes=1, gpus=0, cpus=resources.cpus, overrides=[]))
    options += ["requeue"] + [f"begin=now+{FULL_MINUTES}minutes"] * (not told.after)
    words = shlex.join([jobs.site.python or sys.executable, "-m", "src.main", *command, "launcher.again=false"])
    return _text(told, options, [*_prelude(jobs.site), words, f"touch {shlex.quote(str(done))}"])


def _text(told: Submission, options: list[str], lines: list[str]) -> str:
    head = ["#!/usr/bin/env bash", f"# `sbatch {told.script}` submits it again."]
    return "\n".join([*head, *(f"#SBATCH --{option}" for option in options), "set -eu", *lines]) + "\n"


def _options(told: Submission, jobs: Jobs, resources: Resources, needs: Shape) -> list[str]:
    """Of sbatch, without the dashes."""
    place = plain(Path(told.folder) / "logs" / told.name)
    end = "%A_%a" if len(told.elements) > 1 else f"%j_{next(iter(told.elements))}"
    found = [f"job-name={told.name}", f"comment={told.token}", f"chdir={plain(ROOT)}", f"output={place}-{end}.out"]
    found += ["open-mode=append", f"export={_export(jobs)}", "kill-on-invalid-dep=yes"]
    found += [f"dependency={told.after}"] if told.after else []
    return found + wanted_options(jobs.site, resources, needs)


def wanted_options(site: Site, resources: Resources, needs: Shape) -> list[str]:
    """What a job wants of its nodes."""
    found = [f"time={resources.minutes}", f"nodes={needs.nodes}", "ntasks-per-node=1", f"cpus-per-task={needs.cpus}"]
    found += [f"gres={site.gpu}:{needs.gpus}"] if needs.gpus else []
    if needs.nodes > 1:  # all that they have
        found += ["exclusive", f"mem={resources.memory_gb or 0}G"]
    elif resources.memory_gb:
        found += [f"mem={resources.memory_gb}G"]
    chosen = {name: getattr(resources, name) or getattr(site, name) for name in ("partition", "qos", "constraint")}
    return found + [f"{name}={value}" for name, value in (chosen | {"account": site.account}).items() if value]


def dependency(array: Array, submitted: Mapping[Array, Submission]) -> str:
    """What the array waits for: everything named succeeds, and the element of its own index in what is matched."""
    whole = [submitted[other].job if index is None else submitted[other].element(index) for other, index in array.named]
    matched = [str(submitted[other].job) for other in array.matched]
    found = (
        [":".join(["afterok", *map(str, dict.fromkeys([*whole, *array.running]))])] if whole or array.running else []
    )
    return ",".join(found + ([":".join(["aftercorr", *matched])] if matched else []))


def awaited(array: Array, index: int, submitted: Mapping[Array, Submission]) -> list[str]:
    """The jobs that an element waits for, of those that are submitted."""
    named = [
        submitted[other].element(one)
        for other, number in array.named
        if other in submitted
        for one in (other.elements if number is None else [number])
    ]
    return named + [submitted[other].element(index) for other in array.matched if other in submitted]


def plain(path: Path) -> str:
    """As it may stand in a line of options. Raises UserError where it may not."""
    if not PLAIN.fullmatch(str(path)):
        raise UserError(f"launcher: SLURM cannot be told of {str(path)!r}; use a folder without blanks, quotes and %")
    return str(path)


def ranges(indices: list[int]) -> str:
    """0-3,7 of 0, 1, 2, 3, 7."""
    found: list[list[int]] = []
    for index in sorted(indices):
        if found and found[-1][1] == index - 1:
            found[-1][1] = index
        else:
            found.append([index, index])
    return ",".join(str(start) if start == end else f"{start}-{end}" for start, end in found)


def _export(jobs: Jobs) -> str:
    """Names only: values stay where they are."""
    names = [name for name in (*jobs.site.export, "SLURM_CONF") if name in jobs.environment]
    return ",".join(dict.fromkeys(names)) or "NONE"


def _prelude(site: Site) -> list[str]:
    lines = ["trap 'export WARNED=1' USR1  # before task.sh hears of it"]
    lines += [f"module load {shlex.quote(name)}" for name in site.modules] + site.setup
    if site.scratch:
        lines.append(f"export TMPDIR={shlex.quote(site.scratch)}")
    return lines


def _words(array: Array, told: Submission, points: Sequence[Point], needs: Shape) -> list[str]:
    """The overrides of an element, by its index."""
    only = {index: _only(element) for index, element in array.elements.items()}
    parts = {element.task.parts for element in array.elements.values()}
    lines = [f"index=${{SLURM_ARRAY_TASK_ID:-{next(iter(array.elements))}}}", 'case "$index" in']
    tasks = {element.task for element in array.elements.values()}
    by_part = len(tasks) == 1 and parts != {1}
    for index, element in array.elements.items():
        if by_part and index:
            continue
        words = [*overrides(points[element.task.point].overrides), *only[index], *needs.overrides]
        pattern = "*" if by_part else str(index)
        lines.append(f"{pattern}) words=({shlex.join(words)}) ;;")
    lines += [] if by_part else ['*) echo "no element $index" >&2; exit 2 ;;']
    lines.append("esac")
    if parts != {1}:
        lines.append(_part(array, told, by_part, max(parts)))
    return lines


def _part(array: Array, told: Submission, by_part: bool, parts: int) -> str:
    first = next(iter(array.elements.values())).part
    number = f"$((index + {first + 1}))" if by_part else str(first + 1)
    return f'words+=("part={number}/{parts}" "launcher.mark={mark(told, "$index")}")'


def _only(element: Element) -> list[str]:
    names = [node.name for node in element.task.nodes]
    return [f"only=[{','.join(names)}]"] if names else []


def overrides(given: Sequence[str]) -> list[str]:
    """Of a point, without those that say how it is launched."""
    return [word for word in given if not word.lstrip("+~").startswith(("launcher=", "launcher.", "slurm@"))]


def _python(site: Site) -> str:
    return shlex.join([*site.prefix, site.python or sys.executable, "-m", "src.main"])
