"""The points of a command as one graph: equal keys are one node, and what one job makes of them is one task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

from src.experiment.point import Point
from src.experiment.run_folder import is_reported
from src.kernel.artifact import Divisible, Job, Node, fingerprint_hash
from src.kernel.config import UserError
from src.kernel.store import Store

SETUP: Job = "setup"
REPORT: Job = "report"
START = "start"


@dataclass(frozen=True, eq=False)
class Task:
    """Nodes that are made one after another with the same resources."""

    job: Job
    scope: str
    """The iteration, such as it2, or `start` for what comes before all iterations."""
    point: int
    """The first point that has these nodes. The task uses its overrides."""
    nodes: tuple[Node, ...]
    """The nodes, inputs before what reads them; empty for the point's report."""
    needs: tuple[Task, ...]
    """Direct dependencies, in a fixed order: a task that another of them already waits for is left out."""
    reads: tuple[str, ...]
    """Keys of the nodes that it reads and does not make."""
    makes: tuple[str, ...]
    """Keys of its nodes; for a report, the report's own key."""
    parts: int = 1
    """Number of shares in which the cells of its only node are made."""

    @property
    def name(self) -> str:
        return f"{self.scope}-{self.job}" if self.nodes else self.scope


def tasks_of(points: Sequence[Sequence[Node]], missing: Callable[[Node], bool], parts: int = 1) -> list[Task]:
    """Return the tasks that make what is missing of all points, each after what it needs.

    `points` are the nodes of each, inputs first. Nodes of one job and scope that a point is the first to have are a
    task. Cells of answers are dealt to `parts`.
    """
    owner: dict[str, Task] = {}
    before: dict[Task, set[Task]] = {}
    for point, point_nodes in enumerate(points):
        groups: defaultdict[tuple[Job, str], list[Node]] = defaultdict(list)
        for node in point_nodes:
            if node.key not in owner and missing(node):
                groups[node.job, START if node.job == SETUP else node.place.scope].append(node)
        group_of = {node.key: name for name, nodes in groups.items() for node in nodes}
        order = {
            name: {group_of[parent.key] for node in nodes for parent in node.inputs if parent.key in group_of} - {name}
            for name, nodes in groups.items()
        }
        for name in TopologicalSorter(order).static_order():
            nodes = groups[name]
            keys = tuple(node.key for node in nodes)
            reads = dict.fromkeys(parent.key for node in nodes for parent in node.inputs if parent.key not in keys)
            direct = dict.fromkeys(owner[key] for key in reads if key in owner)
            earlier = set[Task]().union(*(before[need] for need in direct))
            needs = tuple(need for need in direct if need not in earlier)
            divided = len(nodes) == 1 and isinstance(nodes[0].stage, Divisible) and nodes[0].job == "generation"
            shares = min(parts, nodes[0].rows or parts) if divided else 1
            task = Task(*name, point, tuple(nodes), needs, tuple(reads), keys, shares)
            before[task] = earlier.union(direct)
            owner |= dict.fromkeys(keys, task)
    return list(before)


def report_of(point: int, nodes: Sequence[Node], tasks: Sequence[Task], folder: Path) -> Task:
    """Return the last task of a point. It waits for all that make `nodes`, and for an earlier report in its folder."""
    owner = {node.key: task for task in tasks for node in task.nodes}
    making = dict.fromkeys(owner[node.key] for node in nodes if node.key in owner)
    before = {need for task in making for need in task.needs}
    last = tuple(task for task in making if task not in before)
    keys = tuple(node.key for node in nodes)
    return Task(REPORT, REPORT, point, (), last, (*keys, str(folder)), (report_key(nodes, folder), str(folder)))


def report_key(nodes: Sequence[Node], folder: Path) -> str:
    """Return the key of a report in the run folder; a run that gets longer has another."""
    return f"{folder} {fingerprint_hash([node.key for node in nodes])}"


class Sweep:
    """The points of a command, which share one store. Raises UserError where they do not."""

    def __init__(self, points: Sequence[Point]) -> None:
        stores = {str(point.run.store) for point in points}
        if len(stores) > 1:
            raise UserError(f"store: points of a sweep share one; here are {', '.join(sorted(stores))}")
        if any(point.run.only for point in points):
            raise UserError("only: names artifacts of a run that is made here; leave it out of a sweep or a submission")
        self.points, self.store = points, Store(points[0].run.store)
        self.nodes = [point.nodes for point in points]
        self._there = {node.key for node in chain(*self.nodes) if self.store.has(node)}

    def missing(self, node: Node) -> bool:
        """Say whether an artifact is to be made."""
        return node.key not in self._there

    def made(self, node: Node) -> None:
        """Note that an artifact is there from now on."""
        self._there.add(node.key)

    def to_make(self) -> list[Node]:
        """Return what is missing of all points, once each."""
        return [node for node in {node.key: node for node in chain(*self.nodes)}.values() if self.missing(node)]

    def tasks(self, parts: int, under_way: frozenset[str] = frozenset()) -> list[Task]:
        """Return the tasks of what is missing and whose key is not `under_way`, and of reports that are not written."""
        tasks = tasks_of(self.nodes, lambda node: node.key not in under_way and self.missing(node), parts)
        for number, (point, nodes) in enumerate(zip(self.points, self.nodes, strict=True)):
            unfinished = any(self.missing(node) for node in nodes) or not is_reported(point)
            if unfinished and self.reports[number] not in under_way:
                tasks.append(report_of(number, nodes, tasks, point.folder))
        return tasks

    @cached_property
    def reports(self) -> list[str]:
        """The key of each point's report."""
        return [report_key(nodes, point.folder) for point, nodes in zip(self.points, self.nodes, strict=True)]
