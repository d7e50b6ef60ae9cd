"""The script of a job array: readable, and submitted again by `sbatch <script>`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from src.experiment.point import Point
from src.kernel.artifact import Job
from src.kernel.config import UserError
from src.launch.slurm.arrays import Array
from src.launch.slurm.ledger import Maker, Submission, keys_word, mark
from src.launch.slurm.site import Resources, Shape, Site, shape

ROOT = Path(__file__).parents[3]
PLAIN = re.compile(r"[\w./+=,@:-]+")


@dataclass(frozen=True)
class Jobs:
    """What the scripts of a submission have in common."""

    site: Site
    resources: Mapping[Job, Resources]
    at_once: int | None
    """Elements of an array that run at a time."""
    warn_seconds: int
    environment: Mapping[str, str]
    """Of the process that submits."""

    def wants(self, array: Array, points: Sequence[Point]) -> tuple[Resources, Shape]:
        """Returns what each job of an array wants of its nodes."""
        if array.job not in self.resources:
            raise UserError(f"launcher.jobs.{array.job}: missing; say what such a job wants")
        resources, task = self.resources[array.job], next(iter(array.elements.values())).task
        return resources, shape(array.job, points[task.point].run, resources)


def script(array: Array, submission: Submission, after: str, points: Sequence[Point], jobs: Jobs) -> str:
    """Writes the script of an array that waits for `after`, in the words of --dependency."""
    resources, needs = jobs.wants(array, points)
    site, first, several = jobs.site, next(iter(array.elements)), len(array.elements) > 1
    log = f"{plain(Path(submission.folder) / 'logs' / submission.name)}-{'%A_%a' if several else f'%j_{first}'}.out"
    exported = dict.fromkeys(name for name in (*site.export, "SLURM_CONF") if name in jobs.environment)
    options = [f"job-name={submission.name}", f"comment={submission.token}", f"chdir={plain(ROOT)}", f"output={log}"]
    options += ["open-mode=append", f"export={','.join(exported) or 'NONE'}", "kill-on-invalid-dep=yes"]
    options += [f"dependency={after}"] if after else []
    options += node_options(site, resources, needs)
    if several:
        options.append(f"array={ranges(list(array.elements))}" + (f"%{jobs.at_once}" if jobs.at_once else ""))
    options += ["requeue", f"signal=B:USR1@{jobs.warn_seconds}"]
    python = shlex.join([*site.prefix, site.python or sys.executable, "-m", "src.main"])
    lines = [
        "#!/usr/bin/env bash",
        f"# `sbatch {submission.script}` submits it again.",
        *(f"#SBATCH --{option}" for option in options),
        "set -eu",
        "trap 'export WARNED=1' USR1  # before task.sh hears of it",
        *(f"module load {shlex.quote(name)}" for name in site.modules),
        *site.setup,
        *([f"export TMPDIR={shlex.quote(site.scratch)}"] if site.scratch else []),
        *_words(array, submission.token, points),
        f'exec bash slurm/task.sh {python} "${{words[@]}}" launcher=allocation launcher.alone=true',
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


def dependency(array: Array, submitted: Mapping[Array, Submission]) -> str:
    """Says that everything named must succeed, and of what is matched the element of the same index."""
    named = [
        str(submitted[other].job) if index is None else Maker(submitted[other], index).job
        for other, index in array.named
    ]
    matched = [str(submitted[other].job) for other in array.matched]
    for job in array.running:
        (matched if job.endswith("_%") else named).append(job.removesuffix("_%"))
    clauses = {"afterok": dict.fromkeys(named), "aftercorr": matched}
    return ",".join(":".join([kind, *jobs]) for kind, jobs in clauses.items() if jobs)


def plain(path: Path) -> str:
    """Returns a path as it may stand in a line of options. Raises UserError where it may not."""
    if not PLAIN.fullmatch(str(path)):
        raise UserError(f"launcher: SLURM cannot be told of {str(path)!r}; use a folder without blanks, quotes and %")
    return str(path)


def ranges(indices: list[int]) -> str:
    """Writes 0-3,7 for 0, 1, 2, 3, 7."""
    numbered = enumerate(sorted(indices))  # index minus number stays the same in a row of neighbours
    rows = [[index for _, index in row] for _, row in groupby(numbered, key=lambda pair: pair[1] - pair[0])]
    return ",".join(str(row[0]) if len(row) == 1 else f"{row[0]}-{row[-1]}" for row in rows)


def _words(array: Array, token: str, points: Sequence[Point]) -> list[str]:
    """Lines that put the overrides of an element into `words`, by its index."""
    first, element = next(iter(array.elements.items()))
    parts = element.task.parts
    by_part = parts > 1 and len({element.task for element in array.elements.values()}) == 1
    lines = [f"index=${{SLURM_ARRAY_TASK_ID:-{first}}}", 'case "$index" in']
    for index, (task, _) in array.elements.items():
        if by_part and index != first:
            continue  # the same words, but for the part
        words = overrides(points[task.point].overrides)
        words += [f"only=[{','.join(node.name for node in task.nodes)}]"] if task.nodes else []
        words += [f"launcher.keys={keys_word(task.nodes or points[task.point].nodes)}"]
        lines.append(f"{'*' if by_part else index}) words=({shlex.join(words)}) ;;")
    lines += [] if by_part else ['*) echo "no element $index" >&2; exit 2 ;;']
    lines.append("esac")
    if parts > 1:
        number = f"$((index + {element.part + 1}))" if by_part else str(element.part + 1)
        lines.append(f'words+=("part={number}/{parts}" "launcher.mark={mark(token, "$index")}")')
    return lines


def overrides(words: Sequence[str]) -> list[str]:
    """Leaves out the overrides that say how a point is launched."""
    return [word for word in words if not word.lstrip("+~").startswith(("launcher=", "launcher.", "slurm@"))]
