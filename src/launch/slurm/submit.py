"""Submission: what is missing of a sweep, as job arrays that wait for each other. Returns at once."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from src.experiment.sweep import Sweep
from src.experiment.sweep_note import folder_of, note_sweep
from src.experiment.tasks import Task
from src.kernel.config import Fault, UserError
from src.kernel.disk import write_atomic
from src.launch.slurm import client
from src.launch.slurm.arrays import Array, Planner
from src.launch.slurm.ledger import Ledger, Submission
from src.launch.slurm.script import Jobs, dependency, node_options, script


@dataclass(frozen=True)
class Plan:
    """What there is to submit."""

    sweep: Sweep
    arrays: list[Array]
    under_way: dict[str, list[str]]
    """Jobs that make something already, by its key."""
    superseded: list[str]
    """Running jobs of a partly failed array; cancelled before the whole array is submitted again."""
    room: int
    """Jobs that the queue still takes."""
    most: int
    """Jobs that an empty queue takes."""

    @property
    def jobs(self) -> int:
        return sum(len(array.elements) for array in self.arrays)


def plan(sweep: Sweep, ledger: Ledger, parts: int, queued: Sequence[client.Queued], limits: client.Limits) -> Plan:
    """Arranges what is missing and not under way in arrays. Reads the ledger and asks nobody."""
    living, cut = ledger.living(queued), ledger.cut()
    under_way: dict[str, list[str]] = {}
    halves: dict[str, list[str]] = {}
    for key, makers in ledger.makers().items():
        alive, dead = ledger.split(makers, living)
        whole = alive and not dead and makers[-1].submission.group not in cut
        (under_way if whole else halves)[key] = [job.job for job in alive]
    tasks = sweep.tasks(parts, frozenset(under_way))
    shares = max((task.parts for task in tasks), default=1)
    planner = Planner(under_way, min(limits.array, limits.jobs), max(1, min(limits.array, limits.jobs // shares)))
    planner.add(tasks)
    superseded = dict.fromkeys(job for task in tasks for key in task.makes for job in halves.get(key, ()))
    return Plan(sweep, planner.arrays, under_way, list(superseded), limits.jobs - len(queued), limits.jobs)


def check(planned: Plan, jobs: Jobs) -> None:
    """Lets sbatch try one job of each kind. Raises UserError with the config's key where the cluster refuses it."""
    points, tried = planned.sweep.points, set[tuple[str, ...]]()
    folder = folder_of(points) / "slurm"
    for array in planned.arrays:
        resources, needs = jobs.wants(array, points)
        key = f"launcher.jobs.{array.job}"
        if jobs.warn_seconds >= resources.minutes * 60:
            minutes = f"{key}.minutes is {resources.minutes}"
            raise UserError(f"launcher.warn_seconds: {jobs.warn_seconds} is no time to work in, for {minutes}")
        options = (array.job, *node_options(jobs.site, resources, needs))
        if options in tried or planned.room < 1:
            continue
        tried.add(options)
        one = dataclasses.replace(array, elements=dict([next(iter(array.elements.items()))]))
        text = script(
            one, Submission("test", array.name, str(folder), dict.fromkeys(one.elements, [])), "", points, jobs
        )
        try:
            client.slurm("sbatch", "--test-only", stdin=text)
        except (Fault, client.NoCluster):
            raise
        except UserError as error:
            raise UserError(f"{key}: {str(error).removeprefix('launcher: ')}") from None


def submit(planned: Plan, ledger: Ledger, jobs: Jobs) -> None:
    """Submits as many arrays as the queue takes, and says what is left."""
    points, folder, room = planned.sweep.points, folder_of(planned.sweep.points) / "slurm", planned.room
    left, submitted = planned.jobs, dict[Array, Submission]()
    for _, arrays in groupby(planned.arrays, key=lambda array: array.group):
        group = list(arrays)
        count = sum(len(array.elements) for array in group)
        if count > room:
            _say_left(planned, group[0].name, count, room, left, begun=bool(submitted))
            break
        if not submitted:
            (folder / "logs").mkdir(parents=True, exist_ok=True)
            note_sweep(points)
            if planned.superseded:
                client.slurm("scancel", *planned.superseded)
        token = uuid.uuid4().hex[:8]
        for array in group:  # all are noted before the first is submitted: none is of use without the others
            makes = {index: list(element.task.makes) for index, element in array.elements.items()}
            waits = {index: _waits(element.task, planned) for index, element in array.elements.items()}
            submitted[array] = ledger.intend(array.name, folder, makes, waits, token)
        for array in group:
            submission, after = submitted[array], dependency(array, submitted)
            write_atomic(submission.script, script(array, submission, after, points, jobs).encode())
            ledger.submitted(submission, client.submit(submission.script))
            size = f"  {len(array.elements)} jobs" if len(array.elements) > 1 else ""
            print(f"{submission.job}  {array.name}{size}" + (f"  {after}" if after else ""), flush=True)
        room, left = room - count, left - count


def _waits(task: Task, planned: Plan) -> list[str]:
    """Keys of what a task waits for: one of each task it needs, and what jobs under way make for it."""
    return [need.makes[0] for need in task.needs] + [key for key in task.reads if key in planned.under_way]


def _say_left(planned: Plan, name: str, count: int, room: int, left: int, begun: bool) -> None:
    """Raises UserError where nothing was submitted."""
    if count > planned.most:
        raise UserError(f"launcher.parts: {name} is {count} jobs that go together; the queue takes {planned.most}")
    line = f"{name} is {count} jobs, but the queue takes {max(0, room)} more of yours"
    if not begun:
        raise UserError(f"launcher: {line}; give the command again when some have ended")
    print(f"{line}; it and what follows, {left} jobs, are left: the same command submits them when some have ended")
