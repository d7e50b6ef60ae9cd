"""Does the cluster take such jobs at all? Asked before submission: a job that it cannot run is pending for ever."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from src.experiment.sweep import Sweep
from src.experiment.tasks import REPORT
from src.kernel.artifact import Job
from src.kernel.config import UserError
from src.launch.slurm import client
from src.launch.slurm.script import wanted_options
from src.launch.slurm.site import Resources, Shape, Site, shape


@dataclass(frozen=True)
class Nodes:
    """Nodes of a partition that are alike."""

    count: int
    cpus: int
    memory_mb: int
    gres: str


@dataclass(frozen=True)
class Partition:
    name: str
    minutes: float
    nodes: list[Nodes]


REFUSED = re.compile("invalid|permitted|violates", re.IGNORECASE)
"""What sbatch says of jobs that it will never take; of others, why they would wait."""


def check_site(jobs: Mapping[Job, Resources], site: Site, sweep: Sweep, warn_seconds: int) -> None:
    """Raises UserError with the key of what no node or partition can give, or when the cluster cannot be asked."""
    partitions, default = _partitions()
    wanted: set[Job] = {node.job for nodes in sweep.nodes for node in nodes}
    wanted.add(REPORT)
    for job in sorted(wanted):
        resources = jobs.get(job)
        if resources is None:
            raise UserError(f"launcher.jobs.{job}: missing; say what such a job wants")
        if warn_seconds >= resources.minutes * 60:
            told = f"launcher.jobs.{job}.minutes is {resources.minutes}"
            raise UserError(f"launcher.warn_seconds: {warn_seconds} is no time to work in, for {told}")
        chosen = _chosen(job, resources, site, partitions, default)
        shapes = (shape(job, point.run, resources) for point in sweep.points)
        for needs in {(s.nodes, s.gpus, s.cpus): s for s in shapes}.values():
            _check_any(job, resources, needs, chosen, site.gpu)
            _try(job, [f"--{option}" for option in wanted_options(site, resources, needs)])


def _chosen(
    job: Job, resources: Resources, site: Site, partitions: Mapping[str, Partition], default: str | None
) -> list[Partition]:
    """SLURM takes the first of several that has room."""
    names = (resources.partition or site.partition or default or "").split(",")
    for name in names:
        if name not in partitions:
            key = f"launcher.jobs.{job}.partition" if resources.partition else "launcher.site.partition"
            wrong = f"there is no {name}" if name else "the cluster has no default"
            raise UserError(f"{key}: {wrong}; there are {', '.join(sorted(partitions))}")
    return [partitions[name] for name in names]


def _check_any(job: Job, resources: Resources, needs: Shape, partitions: Sequence[Partition], gpu: str) -> None:
    refused: list[UserError] = []
    for partition in partitions:
        try:
            _check(job, resources, needs, partition, gpu)
        except UserError as error:
            refused.append(error)
    if len(refused) == len(partitions):
        raise refused[0]


def _try(job: Job, options: list[str]) -> None:
    """Ask sbatch, which knows accounts, qualities of service and features."""
    try:
        client.slurm("sbatch", "--test-only", "--wrap=true", *options)
    except UserError as error:
        if REFUSED.search(str(error)):
            raise UserError(f"launcher.jobs.{job}: {str(error).removeprefix('launcher: ')}") from None


def _check(job: Job, resources: Resources, needs: Shape, partition: Partition, gpu: str) -> None:
    key, name = f"launcher.jobs.{job}", f"partition {partition.name}"
    if resources.minutes > partition.minutes:
        raise UserError(f"{key}.minutes: {resources.minutes}, but {name} ends jobs after {partition.minutes:.0f}")
    memory = (resources.memory_gb or 0) * 1024
    for what, wanted, most in (
        ("gpus", needs.gpus, max(gpus(group.gres, gpu) for group in partition.nodes)),
        ("cpus", needs.cpus, max(group.cpus for group in partition.nodes)),
        ("memory_gb", memory // 1024, max(group.memory_mb for group in partition.nodes) // 1024),
    ):
        if wanted > most:
            raise UserError(f"{key}.{what}: {wanted} a node, but no node of {name} has more than {most}")
    fit = [
        group.count
        for group in partition.nodes
        if gpus(group.gres, gpu) >= needs.gpus and group.cpus >= needs.cpus and group.memory_mb >= memory
    ]
    if sum(fit) < needs.nodes:
        raise UserError(f"{key}: {needs.nodes} nodes with all it wants, but {name} has {sum(fit)}")


def _partitions() -> tuple[dict[str, Partition], str | None]:
    """By name, and the default one."""
    groups: defaultdict[tuple[str, float], list[Nodes]] = defaultdict(list)
    default = None
    for line in client.slurm("sinfo", "--all", "--noheader", "--format=%P|%l|%D|%c|%m|%G").splitlines():
        try:
            name, limit, count, cpus, memory, gres = line.strip().split("|")
            nodes = Nodes(int(count), int(cpus.rstrip("+")), int(memory.rstrip("+")), gres)
            groups[name.removesuffix("*"), minutes(limit)].append(nodes)
        except ValueError:
            raise UserError(f"launcher: sinfo: {line!r} is no line of a partition; is it SLURM's?") from None
        default = name.removesuffix("*") if name.endswith("*") else default
    return {name: Partition(name, limit, nodes) for (name, limit), nodes in groups.items()}, default


def minutes(limit: str) -> float:
    """Of SLURM's [days-]hours:minutes:seconds, minutes:seconds, or infinite."""
    if limit in ("infinite", "n/a"):
        return float("inf")
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, mins, seconds = [0] * (3 - len(parts)) + parts
    return int(days or 0) * 1440 + hours * 60 + mins + seconds / 60


def gpus(gres: str, gpu: str) -> int:
    """Of a node with such generic resources, as gpu:a100:4(S:0-1),gpu:v100:2, those that are called `gpu`."""
    total = 0
    for one in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, count = one.strip(), "1"
        if re.search(r":\d+$", name):
            name, _, count = name.rpartition(":")
        if name == gpu or name.startswith(f"{gpu}:"):
            total += int(count)
    return total
