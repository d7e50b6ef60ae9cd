"""What a card tells: one policy of a run, and what the store has about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from src.evaluation.benchmark import Result
from src.experiment.run import START, Run
from src.kernel.artifact import Node
from src.kernel.metrics import read_metrics
from src.kernel.provenance import read_record
from src.kernel.store import Store
from src.reporting.report.stand_in import comparable_results, stand_in

Metrics = dict[str, float | None]


class Facts(NamedTuple):
    """Of the policy of iteration `t`; 0 is the start policy."""

    run: Run
    t: int
    nodes: dict[str, Node]
    """Every artifact of the run, by name."""
    store: Store
    command: str
    """Of the run, to be typed in a shell."""
    record: dict[str, Any]
    """Of the policy."""
    evaluation: Metrics | None
    """None: not evaluated yet."""
    divergence: Metrics | None
    results: list[Result]
    """Of benchmarks, as far as they are made."""

    @property
    def node(self) -> Node:
        return self.nodes[policy_name(self.t)]

    @property
    def stand_in(self) -> int | None:
        """Parameters of a policy that is not of the size that its start policy is published with; None where it is."""
        return stand_in(self.run, self.store.path(self.node), self.record, trained=self.t > 0)

    def place(self, name: str) -> Path | None:
        """The folder of an artifact; None: it is not made yet."""
        node = self.nodes[name]
        return self.store.path(node) if self.store.has(node) else None


def facts(run: Run, t: int, nodes: dict[str, Node], store: Store, command: str) -> Facts | None:
    """None where the policy of iteration `t` is not there. Raises UserError for files that cannot be read."""
    node, it = nodes[policy_name(t)], label(t)
    if not store.has(node):
        return None
    record = read_record(store.path(node))
    evaluation, divergence = (_metrics(nodes.get(f"{it}/{name}"), store) for name in ("evaluation", "divergence"))
    found = [one for one in comparable_results(run, nodes.values(), store) if one.policy == it]
    return Facts(run, t, nodes, store, command, record, evaluation, divergence, found)


def policy_name(t: int) -> str:
    """Of the artifact; 0 is the start policy."""
    return f"it{t}/policy" if t else START


def label(t: int) -> str:
    """What artifacts of iteration `t` begin with."""
    return f"it{t}" if t else "base"


def title(run: Run, t: int) -> str:
    """The name of a policy: that of its repository where it goes to the hub."""
    family = run.push_to_hub.rpartition("/")[2] if run.push_to_hub else None
    return f"{family or run.experiment or f'{run.model.name}-{run.method.name}'}-Iter{t}"


def repository(run: Run, t: int) -> str | None:
    """Where the policy of iteration `t` goes on the hub; None: nowhere."""
    return f"{run.push_to_hub}-Iter{t}" if run.push_to_hub else None


def _metrics(node: Node | None, store: Store) -> Metrics | None:
    if node is None or not store.has(node):
        return None
    return read_metrics(store.path(node))
