"""Sweeps of toy nodes for the tests of graphs and job arrays: random ones, and what must come before what in them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar, cast

from src.experiment.sweep import Task
from src.kernel.artifact import Job, Node, Stage
from src.kernel.config import config

T = TypeVar("T")
JOBS: tuple[Job, ...] = ("generation", "ranking", "reference", "training", "evaluation")


@config
class Toy:
    """Two of them are one artifact where name and settings are equal."""

    kind: ClassVar[str] = "toy"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    name: str
    settings: tuple[int, ...] = ()

    def __call__(self, *inputs: Path, out: Path) -> None: ...


@config
class ToyAnswers(Toy):
    """The same, but made in parts."""

    kind: ClassVar[str] = "toys"
    resumable: ClassVar[bool] = True

    def shared(self) -> str:
        return self.name

    def fill(self, *inputs: Path, out: Path, part: int, parts: int) -> bool:
        return True


@dataclass
class _Place:
    """A node of every point: what it reads, and which settings of the point change it."""

    name: str
    job: Job
    reads: list[int]
    settings: list[int]


def random_sweep(lot: random.Random, most_points: int = 6, alone: bool = False) -> list[list[Node]]:
    """Nodes of each point. `alone`: no two nodes of a point have job and scope in common."""
    places = _places(lot, alone)
    points = []
    for _ in range(lot.randint(1, most_points)):
        values, left_out = [lot.randrange(2) for _ in range(4)], lot.random() < 0.3
        nodes: list[Node] = []
        kept = places[: lot.randint(1, len(places))] if left_out else places
        for place in kept:
            stage = ToyAnswers if place.job == "generation" else Toy
            made = cast(Stage, stage(name=place.name, settings=tuple(values[i] for i in place.settings)))
            inputs = tuple(nodes[i] for i in place.reads)
            nodes.append(Node(place.name, made, inputs, rows=5 * (place.job == "generation"), job=place.job))
        points.append(nodes)
    return points


def _places(lot: random.Random, alone: bool) -> list[_Place]:
    """Jobs of an iteration one after another, as those of a run are."""
    found = [_Place("base/policy", "setup", [], lot.choice([[], [0]]))]
    for iteration in range(1, lot.randint(1, 3) + 1):
        for job in JOBS:
            for number in range(1 if alone else lot.randint(0, 2)):
                reads = lot.sample(range(len(found)), min(len(found), lot.randint(1, 3)))
                settings = lot.sample(range(4), lot.choice([0, 0, 0, 1, 1, 2]))
                found.append(_Place(f"it{iteration}/{job}{number}", job, reads, settings))
    return found


def random_missing(lot: random.Random, points: Sequence[Sequence[Node]]) -> set[str]:
    """Keys of what is not there: mostly everything, or anything."""
    share = lot.choice([1.0, 1.0, 0.8, 0.4, 0.0])
    return {key for key in sorted({node.key for nodes in points for node in nodes}) if lot.random() < share}


def closure(items: Iterable[T], directly: Callable[[T], Iterable[T]]) -> dict[T, set[T]]:
    """All that each needs, at whatever distance: one step further until nothing is found any more."""
    found = {item: set(directly(item)) for item in items}
    grown = True
    while grown:
        grown = False
        for item, reached in found.items():
            more = reached.union(*(found[other] for other in reached))
            grown |= more != reached
            found[item] = more
    return found


def needed_nodes(points: Sequence[Sequence[Node]], missing: set[str]) -> dict[str, set[str]]:
    """Key of what is missing -> keys of what is missing and must come before, by the nodes' inputs alone."""
    inputs = {node.key: {parent.key for parent in node.inputs} & missing for nodes in points for node in nodes}
    return closure(missing & inputs.keys(), lambda key: inputs[key])


def needed_tasks(tasks: Sequence[Task]) -> dict[Task, set[Task]]:
    """All that each needs, by `needs` alone."""
    return closure(tasks, lambda task: task.needs)


def toy_task(name: str, point: int, *needs: Task, parts: int = 1) -> Task:
    """Of a scope and a job, as it1-training."""
    scope, _, job = name.partition("-")
    node = Node(f"{scope}/x{point}", Toy(name=name, settings=(point,)), job=job)  # type: ignore[arg-type]
    return Task(job, scope, point, (node,), needs, (), (node.key,), parts)  # type: ignore[arg-type]
