"""Sweeps of toy nodes for the tests of graphs and job arrays: random ones, and what must come before what in them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import ClassVar, TypeVar, cast

from src.experiment.sweep import Task
from src.kernel.artifact import Job, Node, Stage
from src.kernel.config import config

T = TypeVar("T")
JOBS: tuple[Job, ...] = ("generation", "ranking", "reference", "training", "evaluation")


@config
class Toy:
    """A toy stage. Equal name and settings give one artifact."""

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


def random_sweep(rng: random.Random, most_points: int = 6) -> list[list[Node]]:
    """Return the nodes of each point; jobs of an iteration come one after another, as those of a run do."""
    places: list[tuple[str, Job, list[int], list[int]]] = [("base/policy", "setup", [], rng.choice([[], [0]]))]
    for iteration, job in product(range(1, rng.randint(1, 3) + 1), JOBS):
        for number in range(rng.randint(0, 2)):
            reads = rng.sample(range(len(places)), min(len(places), rng.randint(1, 3)))
            settings = rng.sample(range(4), rng.choice([0, 0, 0, 1, 1, 2]))  # of the point, that change this node
            places.append((f"it{iteration}/{job}{number}", job, reads, settings))
    points = []
    for _ in range(rng.randint(1, most_points)):
        values, left_out = [rng.randrange(2) for _ in range(4)], rng.random() < 0.3
        nodes: list[Node] = []
        for name, job, reads, settings in places[: rng.randint(1, len(places))] if left_out else places:
            kind = ToyAnswers if job == "generation" else Toy
            stage = cast(Stage, kind(name=name, settings=tuple(values[i] for i in settings)))
            inputs = tuple(nodes[i] for i in reads)
            nodes.append(Node(name, stage, inputs, rows=5 * (job == "generation"), job=job))
        points.append(nodes)
    return points


def random_missing(rng: random.Random, points: Sequence[Sequence[Node]]) -> set[str]:
    """Return the keys of what is not there: mostly everything, or anything."""
    share = rng.choice([1.0, 1.0, 0.8, 0.4, 0.0])
    return {key for key in sorted({node.key for nodes in points for node in nodes}) if rng.random() < share}


def closure(items: Iterable[T], directly: Callable[[T], Iterable[T]]) -> dict[T, set[T]]:
    """Return all that each needs, at whatever distance: one step further until nothing is new any more."""
    needs: dict[T, set[T]] = {}
    further = {item: set(directly(item)) for item in items}
    while further != needs:
        needs = further
        further = {item: reached.union(*(needs[other] for other in reached)) for item, reached in needs.items()}
    return needs


def needed_nodes(points: Sequence[Sequence[Node]], missing: set[str]) -> dict[str, set[str]]:
    """Return key of what is missing -> keys of what is missing and must come before, by the nodes' inputs alone."""
    inputs = {node.key: {parent.key for parent in node.inputs} & missing for nodes in points for node in nodes}
    return closure(missing & inputs.keys(), lambda key: inputs[key])


def needed_tasks(tasks: Sequence[Task]) -> dict[Task, set[Task]]:
    """Return all that each needs, by `needs` alone."""
    return closure(tasks, lambda task: task.needs)


def toy_task(name: str, point: int, *needs: Task, parts: int = 1) -> Task:
    """Return a task of a scope and a job, as it1-training."""
    scope, _, job = name.partition("-")
    node = Node(f"{scope}/x{point}", Toy(name=name, settings=(point,)), job=job)  # type: ignore[arg-type]
    return Task(job, scope, point, (node,), needs, (), (node.key,), parts)  # type: ignore[arg-type]
