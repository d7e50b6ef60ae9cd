"""Submission: what is missing of a sweep, as job arrays that wait for each other. Returns at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import groupby

from rich.table import Table

from src.experiment.plan import console
from src.experiment.selection import folder_of, note_sweep
from src.experiment.sweep import Sweep
from src.kernel.config import Fault, UserError
from src.kernel.disk import write_atomic
from src.launch.slurm import client
from src.launch.slurm.arrays import OWN, Array, arrange
from src.launch.slurm.jobs import Jobs, dependency, node_options, script, wants
from src.launch.slurm.ledger import Ledger, Submission, living

UnderWay = Mapping[str, Sequence[str]]
"""Jobs in the queue by the keys of what they make."""


def plan(sweep: Sweep, parts: int, queued: Sequence[client.Queued]) -> tuple[list[Array], UnderWay]:
    """Arranges what is missing and not under way in arrays. Reads the ledger and asks nobody."""
    alive = living(queued)
    jobs = {
        key: [job.job for maker in makers if (job := maker.queued(alive))]
        for key, makers in Ledger(sweep.store.root).makers().items()
    }
    under_way = {key: some for key, some in jobs.items() if some}
    return arrange(sweep.tasks(parts, frozenset(under_way)), under_way), under_way


def show(arrays: Sequence[Array], sweep: Sweep, jobs: Jobs) -> None:
    """Prints what each array waits for and what each of its jobs takes."""
    table = Table("array", "jobs", "waits for", "of each job", title="job arrays", title_justify="left")
    for array in arrays:
        waits = []
        for other, index in array.waits:
            name = other.name if isinstance(other, Array) else f"job {other}"
            waits.append(
                f"all of {name}" if index is None else f"{name}, one to one" if index == OWN else f"{name}[{index}]"
            )
        resources, needs = wants(array, sweep.points, jobs)
        sizes = {"nodes": needs.nodes if needs.nodes > 1 else 0, "GPUs": needs.gpus, "cores": needs.cpus}
        sizes |= {"GB": resources.memory_gb or 0, "min": resources.minutes}
        takes = [f"{size} {unit}" for unit, size in sizes.items() if size]
        takes += filter(None, [resources.partition or jobs.site.partition])
        table.add_row(array.name, str(len(array.elements)), ", ".join(waits), ", ".join(takes))
    console().print(table)
    print(f"{len(arrays)} arrays, {sum(len(array.elements) for array in arrays)} jobs")


def check(arrays: Sequence[Array], sweep: Sweep, jobs: Jobs) -> None:
    """Lets sbatch try one job of each kind. Raises UserError with the config's key where the cluster refuses it."""
    tried = set[tuple[str, ...]]()
    for array in arrays:
        options = (array.task.job, *node_options(jobs.site, *wants(array, sweep.points, jobs)))
        if options in tried:
            continue
        tried.add(options)
        one = dataclasses.replace(array, elements=dict([next(iter(array.elements.items()))]))
        submission = Submission("test", array.name, str(folder_of(sweep.points) / "slurm"), {}, {})
        try:
            client.slurm("sbatch", "--test-only", stdin=script(one, submission, "", sweep.points, jobs))
        except (Fault, client.NoCluster):
            raise
        except UserError as error:
            raise UserError(f"launcher.jobs.{array.task.job}: {str(error).removeprefix('launcher: ')}") from None


def submit(arrays: Sequence[Array], under_way: UnderWay, sweep: Sweep, jobs: Jobs) -> None:
    """Submits the arrays. Raises UserError where the queue takes no more, and says how many jobs are left."""
    ledger, folder = Ledger(sweep.store.root), folder_of(sweep.points) / "slurm"
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    note_sweep(sweep.points)
    submitted: dict[Array, str] = {}
    left = sum(len(array.elements) for array in arrays)
    for _, group in groupby(arrays, key=lambda array: array.task):
        whole = dict[Array, str]()
        for array in group:
            tasks = {index: element.task for index, element in array.elements.items()}
            makes = {index: list(task.makes) for index, task in tasks.items()}
            waits = {  # one key of each task it needs, and what jobs under way make for it
                index: [need.makes[0] for need in task.needs] + [key for key in task.reads if key in under_way]
                for index, task in tasks.items()
            }
            after = dependency(array, submitted)
            submission = ledger.note(array.name, folder, makes, waits)
            write_atomic(submission.script, script(array, submission, after, sweep.points, jobs).encode())
            try:
                said = client.slurm("sbatch", "--parsable", str(submission.script))
            except BaseException as error:
                if whole:  # parts of an artifact are of no use without the others
                    client.slurm("scancel", *whole.values())
                if isinstance(error, UserError):
                    raise type(error)(f"{error}; {array.name} and what follows, {left} jobs, are left") from None
                raise
            whole[array] = number = said.strip().rpartition("\n")[2].partition(";")[0]
            size = f"  {len(array.elements)} jobs" if len(array.elements) > 1 else ""
            print(f"{number}  {array.name}{size}" + (f"  {after}" if after else ""), flush=True)
        submitted |= whole
        left -= sum(len(array.elements) for array in whole)
