"""One graph over all points of a sweep: equal keys are one node, and what one job makes of them is one task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from src.kernel.artifact import Divisible, Job, Node, fingerprint_hash

SETUP: Job = "setup"
REPORT: Job = "report"
START = "start"


@dataclass(frozen=True, eq=False)
class Task:
    """Nodes that are made one after another with the same resources."""

    job: Job
    scope: str
    """The iteration, such as it2; what is before all iterations together is `start`."""
    point: int
    """The first point of the sweep that has these nodes; its overrides are the task's."""
    nodes: tuple[Node, ...]
    """Inputs before what reads them; none: the point's report."""
    needs: tuple[Task, ...]
    """Each once, in a fixed order."""
    reads: tuple[str, ...]
    """Keys of what it reads and does not make."""
    makes: tuple[str, ...]
    """Keys of its nodes; of a report, its own."""
    parts: int = 1
    """Shares in which the cells of its one node are made."""

    @property
    def name(self) -> str:
        return f"{self.scope}-{self.job}" if self.nodes else self.scope


def tasks_of(points: Sequence[Sequence[Node]], missing: Callable[[Node], bool], parts: int = 1) -> list[Task]:
    """The tasks that make what is missing of all points, each after what it needs.

    `points` are the nodes of each, inputs first; nodes of one job and scope that a point is the first to have are a
    task. Cells of answers are dealt to `parts`.
    """
    owner: dict[str, Task] = {}
    before: dict[Task, set[Task]] = {}
    found: list[Task] = []
    for point, nodes in enumerate(points):
        groups = _groups([node for node in nodes if node.key not in owner and missing(node)])
        for name in _in_order(groups):
            task = _task(name, point, groups[name], owner, before, parts)
            owner |= dict.fromkeys((node.key for node in task.nodes), task)
            found.append(task)
    return found


_Name = tuple[Job, str]


def _groups(nodes: list[Node]) -> dict[_Name, list[Node]]:
    groups: defaultdict[_Name, list[Node]] = defaultdict(list)
    for node in nodes:
        scope = START if node.job == SETUP else node.place.scope
        groups[node.job, scope].append(node)
    return groups


def _in_order(groups: dict[_Name, list[Node]]) -> list[_Name]:
    """Those that are needed before those that need them."""
    of = {node.key: name for name, nodes in groups.items() for node in nodes}
    needs = {
        name: {of[parent.key] for node in nodes for parent in node.inputs if of.get(parent.key, name) != name}
        for name, nodes in groups.items()
    }
    return list(TopologicalSorter(needs).static_order())


def _task(
    name: _Name, point: int, nodes: list[Node], owner: dict[str, Task], before: dict[Task, set[Task]], parts: int
) -> Task:
    """Of what it needs, that alone which nothing else of it needs in turn."""
    own = {node.key for node in nodes}
    reads = dict.fromkeys(parent.key for node in nodes for parent in node.inputs if parent.key not in own)
    direct = dict.fromkeys(owner[key] for key in reads if key in owner)
    earlier = set[Task]().union(*(before[need] for need in direct))
    divided = len(nodes) == 1 and isinstance(nodes[0].stage, Divisible) and nodes[0].job == "generation"
    count = min(parts, nodes[0].rows or parts) if divided else 1
    needs = tuple(need for need in direct if need not in earlier)
    task = Task(*name, point, tuple(nodes), needs, tuple(reads), tuple(node.key for node in nodes), count)
    before[task] = earlier.union(direct)
    return task


def tasks_by_point(points: Sequence[Sequence[Node]], tasks: Sequence[Task]) -> list[list[Task]]:
    """Those that make something of each."""
    owner = {node.key: task for task in tasks for node in task.nodes}
    return [list(dict.fromkeys(owner[node.key] for node in nodes if node.key in owner)) for nodes in points]


def report_of(point: int, nodes: Sequence[Node], making: Sequence[Task], folder: Path) -> Task:
    """The last task of a point, which waits for all that are `making` its nodes, and for an earlier report there."""
    before = {need for task in making for need in task.needs}
    last = tuple(task for task in making if task not in before)
    keys = tuple(node.key for node in nodes)
    return Task(REPORT, REPORT, point, (), last, (*keys, str(folder)), (report_key(nodes, folder), str(folder)))


def report_key(nodes: Sequence[Node], folder: Path) -> str:
    """Of a report in the run folder: a run that gets longer has another."""
    return f"{folder} {fingerprint_hash([node.key for node in nodes])}"
