"""Submission: what is missing of a sweep, as job arrays that wait for each other. Returns at once."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from src.experiment.sweep import Sweep
from src.experiment.sweep_note import folder_of, note_sweep
from src.experiment.tasks import Task
from src.kernel.config import UserError
from src.kernel.disk import write_atomic
from src.launch.slurm import client
from src.launch.slurm.arrays import Array, Planner
from src.launch.slurm.ledger import Alive, Ledger, Submission
from src.launch.slurm.script import Jobs, awaited, dependency, rest_script, script

REST = "rest"
"""The job that submits what a user's limit of jobs has left out."""


@dataclass(frozen=True)
class Plan:
    """What there is to submit."""

    sweep: Sweep
    arrays: list[Array]
    under_way: dict[str, list[str]]
    """Jobs that make something already, by its key."""
    room: int
    """Jobs that the queue still takes."""
    useless: list[str]
    """Jobs of shares whose others are dead or were never submitted: they end when all are submitted again."""
    largest: int
    """Jobs that an empty queue takes."""
    patient: bool
    """Wait for a queue that is full."""


@dataclass(frozen=True)
class Wish:
    """What a command wants of a plan."""

    parts: int
    again: bool
    """What failed before is wanted too."""
    only_failed: bool = False
    """Nothing else is wanted."""


def plan(sweep: Sweep, ledger: Ledger, wish: Wish, queued: list[client.Queued], limits: client.Limits) -> Plan:
    """The arrays of what is missing and not under way. Reads the ledger, asks nobody."""
    alive, cut = Alive(queued, ledger.cancelled), ledger.cut()
    under_way: dict[str, list[str]] = {}
    failed, left = set[str](), set[str]()
    halves: dict[str, list[str]] = {}
    for key, makers in ledger.makers().items():
        living, dead = ledger.split(makers, alive)
        jobs = [one.job for one in living]
        if makers[-1].submission.group in cut:
            halves[key] = jobs
            left.add(key)
        elif makers[-1].submission.name == REST:  # a job is to submit it, and may be the one that asks
            left |= set() if jobs else {key}
        elif jobs and not dead:
            under_way[key] = jobs
        else:
            halves[key] = jobs
            failed.add(key)
    tasks = sweep.tasks(wish.parts, frozenset(under_way))
    planner = Planner(under_way, *_sizes(tasks, limits))
    planner.add(wanted := _wanted(tasks, failed, left, wish))
    useless = dict.fromkeys(job for task in wanted for key in task.makes for job in halves.get(key, ()))
    patient = not wish.again
    return Plan(sweep, planner.arrays, under_way, _room(queued, limits), list(useless), limits.most, patient)


def _room(queued: list[client.Queued], limits: client.Limits) -> int:
    """But for the job that submits the rest."""
    own = limits.submitted - len(queued) if limits.submitted else client.ENDLESS
    return min(own, client.ENDLESS if limits.free is None else limits.free) - 1


def _sizes(tasks: list[Task], limits: client.Limits) -> tuple[int, int]:
    """Elements that an array, and points that a group has at most."""
    parts = max((task.parts for task in tasks), default=1)
    return min(limits.array, limits.most), max(1, min(limits.array, limits.most // parts))


def _wanted(tasks: list[Task], failed: set[str], left: set[str], wish: Wish) -> list[Task]:
    """Without what failed before and what needs it; or that alone, what was `left` out then, and what they need."""
    hit: set[Task] = set()
    for task in tasks:
        known = failed | left if wish.only_failed else failed
        if known.intersection(task.makes) or hit.intersection(task.needs):
            hit.add(task)
    if not wish.only_failed:
        return [task for task in tasks if wish.again or task not in hit]
    for task in reversed(tasks):
        if task in hit:
            hit.update(task.needs)
    return [task for task in tasks if task in hit]


def submit(planned: Plan, ledger: Ledger, jobs: Jobs, command: Sequence[str]) -> list[Submission]:
    """Submit as many arrays as the queue takes, and a job for the rest."""
    points, folder, room = planned.sweep.points, folder_of(planned.sweep.points) / "slurm", planned.room
    groups = [list(group) for _, group in groupby(planned.arrays, key=lambda array: array.group)]
    done = dict[Array, Submission]()
    for number, group in enumerate(groups):
        count = sum(len(array.elements) for array in group)
        if count > room:
            _check_room(planned, group[0].name, count, begun=bool(done))
            _submit_rest(ledger, folder, jobs, command, done, [array for group in groups[number:] for array in group])
            break
        if not done:
            (folder / "logs").mkdir(parents=True, exist_ok=True)
            note_sweep(points)
            if planned.useless:
                client.slurm("scancel", *planned.useless)
        together = uuid.uuid4().hex[:8]
        told = {a: ledger.intend(a.name, _keys(a), folder, dependency(a, done), together) for a in group}
        done |= told
        for array in group:
            _send(ledger, done[array], script(array, done[array], points, jobs))
            print(_line(done[array]), flush=True)
        room -= count
    return list(done.values())


def _check_room(planned: Plan, name: str, count: int, begun: bool) -> None:
    if count > planned.largest:
        raise UserError(
            f"launcher.parts: {name} is {count} jobs that go together, and the queue takes {planned.largest}"
        )
    if not begun and not planned.patient:
        raise UserError(
            f"launcher: {name} is {count} jobs, but the queue takes {planned.room} more of yours; "
            "submit again when some have ended"
        )


def _keys(array: Array) -> dict[int, list[str]]:
    return {index: list(element.task.makes) for index, element in array.elements.items()}


def _send(ledger: Ledger, told: Submission, text: str) -> None:
    write_atomic(told.script, text.encode())
    ledger.submitted(told, client.submit(told.script))


def _line(told: Submission) -> str:
    count = f"  {len(told.elements)} jobs" if len(told.elements) > 1 else ""
    return f"{told.job}  {told.name}{count}" + (f"  {told.after}" if told.after else "")


def _submit_rest(
    ledger: Ledger,
    folder: Path,
    jobs: Jobs,
    command: Sequence[str],
    done: Mapping[Array, Submission],
    left: Sequence[Array],
) -> None:
    """A job that gives the same command again when all of these have ended, for what is left."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    after = "afterany:" + ":".join(str(told.job) for told in done.values()) if done else ""
    needs: dict[str, list[str]] = {}
    for array in left:
        for index, keys in _keys(array).items():
            for key in keys:
                needs.setdefault(key, []).extend(awaited(array, index, done))
    told = ledger.intend(REST, {0: list(needs)}, folder, after, needs=needs)
    _send(ledger, told, rest_script(told, command, jobs, ledger.mark(told, 0)))
    print(f"{_line(told)}: submits what the queue does not take now")
