"""`launcher=slurm`: what is missing of a sweep, submitted as job arrays that wait for each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from itertools import groupby

from pydantic import PositiveInt
from rich.table import Table

from src.experiment.plan import console, print_stages
from src.experiment.point import Point
from src.experiment.preflight import check_here, check_keys, check_places, check_settings, remarks
from src.experiment.selection import folder_of, note_sweep
from src.experiment.sweep import SETUP, Sweep
from src.kernel.artifact import Node
from src.kernel.config import Fault, Free, UserError, config
from src.kernel.disk import write_atomic
from src.launch.slurm import client
from src.launch.slurm.arrays import OWN, Array, arrange
from src.launch.slurm.jobs import Jobs, check_folder, dependency, node_options, script, wants
from src.launch.slurm.ledger import Ledger, Submission, submission_lock
from src.launch.slurm.status import cancel, print_status
from src.reporting.hub import check_push


@config
class Slurm(Jobs):
    """Submits what is missing of all points as job arrays, and returns."""

    parts: Free[PositiveInt]
    """Tasks that share the answers of an iteration."""

    def launch(self, points: Sequence[Point]) -> int:
        sweep = Sweep(points)
        for point in points:
            check_push(point.run)
        check_settings(sweep.to_make())
        check_places(sweep.to_make(), sweep.store, [point.folder for point in points])
        for line in remarks(sweep.to_make(), sweep.store, queued=True):
            print(line)
        here = self._made_here(sweep)
        check(arrays_of(sweep, self.parts, client.queue())[0], sweep, self)
        check_here(sweep.to_make())
        check_keys(here, sweep.store)
        for node in here:
            print(f"{node.name} is made here", flush=True)
            sweep.store.make(node)
        with submission_lock(sweep.store.root):
            arrays, under_way = arrays_of(sweep, self.parts, client.queue())
            note_sweep(points)
            if arrays:
                folder = folder_of(points) / "slurm"
                print(f"scripts and logs: {folder}; `status` with the same words shows how far it is")
                submit(arrays, under_way, sweep, self)
            else:
                keys = {node.key for node in sweep.to_make()}
                print(f"nothing to submit; artifacts under way: {len(keys.intersection(under_way))}")
        return 0

    retry = launch
    """The command itself submits what is missing and not under way."""

    def plan(self, points: Sequence[Point]) -> int:
        sweep = Sweep(points)
        print_stages(sweep)
        check_folder(str(folder_of(points)))
        self._made_here(sweep)
        try:
            arrays, _ = arrays_of(sweep, self.parts, client.queue())
            check(arrays, sweep, self)
            remark = "the cluster takes such jobs"
        except client.NoCluster as error:
            arrays, _ = arrays_of(sweep, self.parts, {})
            remark = f"not checked against a cluster ({error})"
        print_arrays(arrays, sweep, self)
        print(remark)
        return 0

    def status(self, points: Sequence[Point]) -> int:
        return print_status(Sweep(points))

    def cancel(self, points: Sequence[Point]) -> int:
        return cancel(Sweep(points))

    def _made_here(self, sweep: Sweep) -> list[Node]:
        """Return models and prompts that no job fetches, and count them as made."""
        nodes = [node for node in sweep.to_make() if node.job == SETUP and self.site.setup_here]
        for node in nodes:
            sweep.made(node)
        return nodes


def arrays_of(sweep: Sweep, parts: int, queue: client.Queue) -> tuple[list[Array], dict[str, list[str]]]:
    """Return what is missing and not under way as arrays, and what is under way: key -> numbers of jobs."""
    under_way = Ledger(sweep.store.root).under_way(queue)
    return arrange(sweep.tasks(parts, frozenset(under_way)), under_way), under_way


def print_arrays(arrays: Sequence[Array], sweep: Sweep, jobs: Jobs) -> None:
    """Print what each array waits for and what each of its jobs takes."""
    table = Table("array", "jobs", "waits for", "of each job", title="job arrays", title_justify="left")
    for array in arrays:
        waits = []
        for other, index in array.waits:
            name = other.name if isinstance(other, Array) else f"job {other}"
            which = f"{name}, one to one" if index == OWN else f"{name}[{index}]"
            waits.append(f"all of {name}" if index is None else which)
        resources, machine = wants(array, sweep.points, jobs)
        sizes = {"node": machine.nodes if machine.nodes > 1 else 0, "GPU": machine.gpus, "core": machine.cpus}
        takes = [f"{size} {unit}{'s' * (size > 1)}" for unit, size in sizes.items() if size]
        takes += [f"{size} {unit}" for size, unit in ((resources.memory_gb, "GB"), (resources.minutes, "min")) if size]
        takes += filter(None, [resources.partition or jobs.site.partition])
        table.add_row(array.name, str(len(array.elements)), ", ".join(waits), ", ".join(takes))
    console().print(table)
    print(f"arrays: {len(arrays)}, jobs: {sum(len(array.elements) for array in arrays)}")


def check(arrays: Sequence[Array], sweep: Sweep, jobs: Jobs) -> None:
    """Let sbatch try one job of each kind. Raises UserError with the config's key where the cluster refuses it."""
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


def submit(arrays: Sequence[Array], under_way: Collection[str], sweep: Sweep, jobs: Jobs) -> None:
    """Submit the arrays; `under_way` are keys of what other jobs make.

    Raises UserError where the queue takes no more, and says how many jobs are left.
    """
    ledger, folder = Ledger(sweep.store.root), folder_of(sweep.points) / "slurm"
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    submitted: dict[Array, str] = {}
    left = sum(len(array.elements) for array in arrays)
    for _, group in groupby(arrays, key=lambda array: array.task):
        submitted_parts = dict[Array, str]()
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
                answer = client.slurm("sbatch", "--parsable", str(submission.script))
            except BaseException as error:
                if submitted_parts:  # parts of an artifact are of no use without the others
                    client.slurm("scancel", *submitted_parts.values())
                if isinstance(error, UserError):
                    raise type(error)(f"{error}; not submitted: {array.name} and what follows (jobs: {left})") from None
                raise
            submitted_parts[array] = number = answer.strip().rpartition("\n")[2].partition(";")[0]
            size = f"  {len(array.elements)} jobs" if len(array.elements) > 1 else ""
            print(f"{number}  {array.name}{size}" + (f"  {after}" if after else ""), flush=True)
        submitted |= submitted_parts
        left -= sum(len(array.elements) for array in submitted_parts)
