"""Tasks as job arrays: which tasks are one array, and what each array waits for.

Element i of an array is a task of point i. Where it alone of its array waits for element i of another array, SLURM
matches the two (aftercorr); what several elements wait for is named (afterok). So one point's failure stops no other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from src.experiment.tasks import Task
from src.kernel.artifact import Job


@dataclass(frozen=True, eq=False)
class Array:
    """A job array: its elements differ only in the point, or only in the part."""

    name: str
    group: int
    """A number that arrays with parts of the same tasks have in common."""
    job: Job
    elements: dict[int, Element]
    """Index in the array -> element."""
    matched: tuple[Array, ...]
    """Arrays whose element i is waited for by element i."""
    named: tuple[tuple[Array, int | None], ...]
    """What every element waits for: an array, and an index in it, or None for all of it."""
    running: tuple[str, ...]
    """Jobs of earlier submissions that every element waits for; `77_%` is the element of its own index."""


class Element(NamedTuple):
    """A task, or a part of one, counted from 0."""

    task: Task
    part: int


class _Wait(NamedTuple):
    """What an element waits for, in numbers of arrays. Elements that wait for the same may be one array."""

    parts: int
    chunk: int
    matched: frozenset[int]
    named: frozenset[tuple[int, int | None]]
    running: frozenset[str]


class Planner:
    """Collects arrays in an order in which each comes after those it waits for."""

    def __init__(self, running: Mapping[str, Sequence[str]], largest: int, most: int) -> None:
        """Takes jobs under way by key of what they make, and the most elements of an array and points of a group."""
        self.running, self.largest, self.most = running, largest, most
        self.arrays: list[Array] = []
        self._of: dict[Task, list[int]] = {}
        """Task -> numbers of its arrays: one, or one for each part."""
        self._whole: set[Task] = set()
        """Tasks that have their arrays to themselves."""

    def add(self, tasks: Sequence[Task]) -> None:
        """Arranges tasks, which come after what they need."""
        for group in _by_depth(tasks):
            counts = Counter[Task | str](need for task in group for need in (*task.needs, *self._running(task)))
            several = {need for need, count in counts.items() if count > 1}
            alike: defaultdict[_Wait, list[Task]] = defaultdict(list)
            for task in group:
                alike[self._wait(task, several)].append(task)
            for number, (wait, members) in enumerate(alike.items(), 1):
                name = f"{members[0].name}-{number}" if len(alike) > 1 else members[0].name
                self._add_arrays(name, members, wait)

    def _wait(self, task: Task, several: set[Task | str]) -> _Wait:
        matched, named = set[int](), set[tuple[int, int | None]]()
        for need in task.needs:
            numbers = self._of[need]
            if need in self._whole:
                named.update((number, None) for number in numbers)
            elif need in several or need.point != task.point:
                named.update((number, need.point % self.most) for number in numbers)
            else:
                matched.update(numbers)
        end = f"_{task.point % self.most}"
        running = {
            job.removesuffix(end) + "_%" if job.endswith(end) and job not in several else job
            for job in self._running(task)
        }
        return _Wait(task.parts, task.point // self.most, frozenset(matched), frozenset(named), frozenset(running))

    def _running(self, task: Task) -> set[str]:
        return {job for key in task.reads for job in self.running.get(key, ())}

    def _add_arrays(self, name: str, members: list[Task], wait: _Wait) -> None:
        group = len(self.arrays)
        if len(members) == 1:  # a plain job, or its indices are parts: nothing to match
            one = members[0].point % self.most
            named = wait.named | {(number, one) for number in wait.matched}
            running = frozenset(job.replace("%", str(one)) for job in wait.running)
            wait = wait._replace(matched=frozenset(), named=frozenset(named), running=running)
            parts = range(wait.parts)
            for start in parts[:: self.largest]:
                chunk = parts[start : start + self.largest]
                self._append(name, group, {i - start: Element(members[0], i) for i in chunk}, wait)
        else:
            for part in range(wait.parts):
                own = {task.point % self.most: Element(task, part) for task in members}
                self._append(f"{name}-part{part + 1}" if wait.parts > 1 else name, group, own, wait)

    def _append(self, name: str, group: int, elements: dict[int, Element], wait: _Wait) -> None:
        matched = tuple(self.arrays[number] for number in sorted(wait.matched))
        named = sorted(wait.named, key=lambda one: (one[0], -1 if one[1] is None else one[1]))
        waits = tuple((self.arrays[number], index) for number, index in named)
        tasks = dict.fromkeys(element.task for element in elements.values())
        for task in tasks:
            self._of.setdefault(task, []).append(len(self.arrays))
        if len(tasks) == 1:
            self._whole.update(tasks)
        job = next(iter(tasks)).job
        self.arrays.append(Array(name, group, job, elements, matched, waits, tuple(sorted(wait.running))))


def _by_depth(tasks: Sequence[Task]) -> list[list[Task]]:
    """Groups tasks of one job and scope that have as many others before them, in order."""
    depth: dict[Task, int] = {}
    groups: defaultdict[tuple[int, str], list[Task]] = defaultdict(list)
    for task in tasks:
        depth[task] = 1 + max((depth[need] for need in task.needs), default=0)
        groups[depth[task], task.name].append(task)
    return [groups[key] for key in sorted(groups)]
