"""What benchmarks say of a run's policies, read from their scores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from src.evaluation.plan import SCORES, Benchmark, Measure, part_of_all
from src.kernel.artifact import Node
from src.kernel.rows import read_metrics
from src.kernel.store import Store

if TYPE_CHECKING:
    from src.experiment.run import Run

Numbers = dict[str, float | None]


class Result(NamedTuple):
    """Of one benchmark, of one policy."""

    name: str
    """Of the benchmark in the config."""
    benchmark: Benchmark
    policy: str
    """`base`, `it1`, …"""
    numbers: Numbers
    folder: Path
    """Of the scores."""
    rehearsed: bool = False
    """Its policy is a stand-in: of a rehearsal, or of another size than published."""

    @property
    def items(self) -> int:
        return int(self.numbers.get("items") or 0)

    @property
    def best_of(self) -> int | None:
        return getattr(self.benchmark, "best_of", None)

    @property
    def departs(self) -> str | None:
        """Why no published number is comparable; None: it is."""
        if self.rehearsed:
            return "models of another size than published"
        if why := self.benchmark.departs(self.policy):
            return why
        items = self.numbers.get("items")
        if self.numbers.get("official_items", items) != items:
            return "other items, baseline or annotator"
        return part_of_all(items, getattr(self.benchmark, "published_items", None))

    def interval(self, measure: Measure) -> tuple[float, float] | None:
        low, high = (self.numbers.get(f"{measure.key}_{side}") for side in ("low", "high"))
        return None if low is None or high is None else (low, high)

    def said(self, title: str) -> float | None:
        """The value that published tables call `title`; None: not measured."""
        found = (measure.key for measure in self.benchmark.measures if measure.title == title)
        return next((self.numbers.get(key) for key in found), None)


def results(run: Run, nodes: Iterable[Node], store: Store) -> list[Result]:
    """Of what is made, by benchmark and then by policy. Raises UserError for files that cannot be read."""
    by_name = {node.name: node for node in nodes if store.has(node)}
    found = []
    for name, benchmark in run.benchmark.items():
        for policy in ("base", *(f"it{t}" for t in range(1, run.iter + 1))):
            if node := by_name.get(f"{policy}/{name}/{SCORES}"):
                folder = store.path(node)
                found.append(Result(name, benchmark, policy, read_metrics(folder), folder, run.rehearsed))
    return found


def of_table(found: Iterable[Result], policy: str, benchmark: str, best_of: int | None) -> Result | None:
    """The one that a published table of `benchmark` can be held against; None: not measured."""
    alike = (
        one for one in found if one.benchmark.title == benchmark and one.best_of == best_of and one.departs is None
    )
    return next((one for one in alike if one.policy == policy), None)
