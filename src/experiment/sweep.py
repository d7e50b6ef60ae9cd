"""The points of a command as one graph: what they share is made once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from src.experiment.forecast import Rates, device_seconds, rate_of, rates
from src.experiment.point import Point
from src.experiment.run_folder import is_reported
from src.experiment.tasks import Task, report_key, report_of, tasks_by_point, tasks_of
from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.kernel.store import Store


@dataclass
class Row:
    """What all points want of one stage of one iteration."""

    name: str
    apart: int = 0
    """Artifacts, were nothing shared."""
    keys: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    shared_s: float = 0.0
    """Of a device, for what is missing."""
    apart_s: float = 0.0
    """The same, were nothing there and nothing shared."""
    unknown: bool = False
    """Some of it has no measured rate."""


class Sweep:
    """Points of one store. Raises UserError where they are of several."""

    def __init__(self, points: Sequence[Point]) -> None:
        places = {str(point.run.store) for point in points}
        if len(places) > 1:
            raise UserError(f"store: points of a sweep share one; here are {', '.join(sorted(places))}")
        self.points = points
        self.store = Store(points[0].run.store)
        self.nodes = [self._wanted(point) for point in points]
        self._there: dict[str, bool] = {}

    @staticmethod
    def _wanted(point: Point) -> list[Node]:
        if point.run.only:
            raise UserError("only: names artifacts of a run that is made here; leave it out of a sweep or a submission")
        return point.nodes

    def missing(self, node: Node) -> bool:
        """Asked of the disk once."""
        if node.key not in self._there:
            self._there[node.key] = self.store.has(node)
        return not self._there[node.key]

    def to_make(self) -> list[Node]:
        """What is missing of all points, once each."""
        nodes = {node.key: node for nodes in self.nodes for node in nodes}
        return [node for node in nodes.values() if self.missing(node)]

    def made(self, node: Node) -> None:
        """It is there from now on."""
        self._there[node.key] = True

    def tasks(self, parts: int, under_way: frozenset[str] = frozenset()) -> list[Task]:
        """What makes all that is missing and whose key is not `under_way`, and the reports that are not written."""
        tasks = tasks_of(self.nodes, lambda node: node.key not in under_way and self.missing(node), parts)
        by_point = tasks_by_point(self.nodes, tasks)
        for number, (point, nodes) in enumerate(zip(self.points, self.nodes, strict=True)):
            unfinished = any(self.missing(node) for node in nodes) or not is_reported(point)
            if unfinished and self.reports[number] not in under_way:
                tasks.append(report_of(number, nodes, by_point[number], point.folder))
        return tasks

    @cached_property
    def reports(self) -> list[str]:
        """The key of each point's report."""
        return [report_key(nodes, point.folder) for point, nodes in zip(self.points, self.nodes, strict=True)]

    @cached_property
    def rates(self) -> Rates:
        return rates(self.points, self.store)

    def rows(self) -> list[Row]:
        """In the order of the first point that has one."""
        found: dict[str, Row] = {}
        for nodes in self.nodes:
            for node in nodes:
                name = f"{node.place.scope} {node.job}" if node.job != "setup" else "setup"
                row = found.setdefault(name, Row(name))
                needed = device_seconds(node, self.rates)
                row.apart += 1
                row.unknown |= needed is None
                row.apart_s += needed or 0.0
                if node.key not in row.keys and self.missing(node):
                    row.missing.add(node.key)
                    row.shared_s += needed or 0.0
                row.keys.add(node.key)
        return list(found.values())

    def sources(self) -> list[str]:
        """Whence the rates of what is missing are known."""
        missing = (node for nodes in self.nodes for node in nodes if node.work and self.missing(node))
        return sorted({rate.source for node in missing if (rate := rate_of(node, self.rates))})
