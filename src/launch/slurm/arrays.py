"""Tasks as job arrays: which tasks are one array, and what each array waits for.

Element i of an array is a task of point i. Where it alone of its array waits for element i of another array, SLURM
matches the two (aftercorr); what several elements wait for is named (afterok). So one point's failure stops no other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from src.experiment.sweep import Task


class Element(NamedTuple):
    """A task, or a part of one, counted from 0."""

    task: Task
    part: int


@dataclass(frozen=True, eq=False)
class Array:
    """A job array: its elements differ only in the point, or only in the part."""

    number: int
    """Its place among the arrays of a submission."""
    name: str
    elements: dict[int, Element]
    """Index in the array -> element."""
    waits: list[Wait]
    """The arrays and jobs that every element waits for."""

    @property
    def task(self) -> Task:
        """The first element's task. Arrays of other parts of the same tasks have the same."""
        return next(iter(self.elements.values())).task


OWN = "own"
Wait = tuple[Array | str, int | str | None]
"""An earlier array, or the number of a job under way, and an index in it: OWN is the element's own, None is all."""


def arrange(tasks: Sequence[Task], running: Mapping[str, Sequence[str]]) -> list[Array]:
    """Arrange tasks, which come after what they need, in arrays that come after those they wait for.

    Arrays of parts of the same tasks are neighbours. `running`: jobs under way, 77 or 77_3, by the key of what they
    make.
    """
    arrays: list[Array] = []
    made: dict[Task, list[Array]] = {}
    for group in _by_depth(tasks):
        jobs = {task: dict.fromkeys(job for key in task.reads for job in running.get(key, ())) for task in group}
        counts = Counter[Task | str](need for task in group for need in (*task.needs, *jobs[task]))
        alike: defaultdict[tuple[int, frozenset[Wait]], list[Task]] = defaultdict(list)
        for task in group:
            waits = set[Wait]()
            for need in task.needs:
                whole = all(element.task is need for array in made[need] for element in array.elements.values())
                matches = counts[need] == 1 and need.point == task.point
                index = None if whole else OWN if matches else need.point
                waits.update((array, index) for array in made[need])
            for job in jobs[task]:
                number, _, index = job.partition("_")
                matches = counts[job] == 1 and index == str(task.point)
                waits.add((number, OWN if matches else int(index) if index else None))
            alike[task.parts, frozenset(waits)].append(task)
        for count, ((parts, waits), members) in enumerate(alike.items(), 1):
            name = f"{members[0].name}-{count}" if len(alike) > 1 else members[0].name
            if len(members) == 1:  # a plain job, or its indices are parts: there is no index of its own
                (task,) = members
                waits = {(other, task.point if index == OWN else index) for other, index in waits}
                elements = {name: {part: Element(task, part) for part in range(parts)}}
            else:
                names = [f"{name}-part{part + 1}" if parts > 1 else name for part in range(parts)]
                elements = {n: {task.point: Element(task, part) for task in members} for part, n in enumerate(names)}
            new = [Array(len(arrays) + n, *one, sorted(waits, key=_place)) for n, one in enumerate(elements.items())]
            made |= dict.fromkeys(members, new)
            arrays += new
    return arrays


def _place(wait: Wait) -> tuple[int, str, str]:
    """Return what waits are sorted by: jobs under way come before arrays, and arrays as they are submitted."""
    other, index = wait
    return (other.number, "", str(index)) if isinstance(other, Array) else (-1, other, str(index))


def _by_depth(tasks: Sequence[Task]) -> list[list[Task]]:
    """Group tasks of one job and scope that have as many others before them, in order."""
    depth: dict[Task, int] = {}
    groups: defaultdict[tuple[int, str], list[Task]] = defaultdict(list)
    for task in tasks:
        depth[task] = 1 + max((depth[need] for need in task.needs), default=0)
        groups[depth[task], task.name].append(task)
    return [groups[key] for key in sorted(groups)]
