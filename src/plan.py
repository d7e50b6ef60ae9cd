"""`plan`: the graph of a run, what is kept, what would be made and how long it may take. Makes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from src.artifact import PARTIAL, Node, Store
from src.config import UserError
from src.pipeline import START, Run
from src.provenance import read_record
from src.runner import run_name
from src.training.memory import check_memory
from src.training.stage import Train

Rates = dict[str, tuple[float, str]]
"""Workload -> (seconds per unit of work, where the figure comes from)."""


def print_plan(run: Run) -> int:
    """Print the table of `run.nodes()`; returns the exit code."""
    store, nodes = Store(run.store), run.nodes()
    rates = _rates(run, store)
    table = Table(title=f"{run.runs / run_name(run)}", title_justify="left")
    for heading in ("artifact", "key", "state", "reads", "rows", "estimate"):
        table.add_column(heading, justify="right" if heading in ("rows", "estimate") else "left")
    names = {node.key: node.name for node in nodes}
    for node in nodes:
        reads = ", ".join(names[parent.key] for parent in node.inputs)
        state, estimate = _state(store, node), "" if store.has(node) else _clock(_seconds(node, rates))
        table.add_row(node.name, node.key[:8], state, reads, str(node.rows or ""), estimate)
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    console.print(_total([node for node in nodes if not store.has(node)], len(nodes), rates))
    console.print(_memory(run, nodes, store))
    return 0


def print_forecast(run: Run) -> None:
    """One line: how much there is to make, and how long it may take."""
    store, nodes = Store(run.store), run.nodes()
    print(_total([node for node in nodes if not store.has(node)], len(nodes), _rates(run, store)), flush=True)


def _memory(run: Run, nodes: list[Node], store: Store) -> str:
    start = next(node for node in nodes if node.name == START)
    if all(store.has(node) for node in nodes if isinstance(node.stage, Train)):
        return "training: nothing to train"
    if not store.has(start):
        return f"training: memory is known once {START} is made"
    return f"training: {check_memory(store.path(start), run.train, run.hardware.devices)}"


def _state(store: Store, node: Node) -> str:
    if store.has(node):
        return "kept"
    path = store.path(node)
    return "to resume" if node.stage.resumable and path.with_name(path.name + PARTIAL).exists() else "to make"


def _rates(run: Run, store: Store) -> Rates:
    """Built-in figures; medians over the records of stages that ran in one go replace them."""
    measured: defaultdict[str, list[float]] = defaultdict(list)
    for record in _records(store.artifacts()):
        if record.get("work") and not record.get("resumed") and "workload" in record:
            measured[record["workload"]].append(record["seconds"] / record["work"])
    built_in = {
        f"{kind} {model} {run.hardware.name}": (seconds, "hardware yaml")
        for model, kinds in run.hardware.seconds_per_unit.items()
        for kind, seconds in kinds.items()
    }
    return built_in | {workload: (median(values), "records") for workload, values in measured.items()}


def _records(artifacts: Iterable[Path]) -> Iterable[dict[str, Any]]:
    for artifact in artifacts:
        try:
            yield read_record(artifact)
        except UserError:
            continue  # `verify` names it


def _seconds(node: Node, rates: Rates) -> float | None:
    """None: no figure for this workload, or no telling how much it is."""
    if not node.work:
        return node.work
    rate = rates.get(node.workload)
    return None if rate is None else rate[0] * node.work


def _total(missing: list[Node], count: int, rates: Rates) -> str:
    if not missing:
        return f"all {count} artifacts are there; nothing to make"
    seconds = [_seconds(node, rates) for node in missing]
    unknown = sum(s is None for s in seconds)
    sources = sorted({rates[node.workload][1] for node in missing if node.work and node.workload in rates})
    text = f"{len(missing)} of {count} to make"
    if sources or not unknown:
        text += f", about {_clock(sum(s or 0 for s in seconds))}"
    text += f" (rates from {' and '.join(sources)})" if sources else ""
    return text + (f"; {unknown} without a measured rate or a known size" if unknown else "")


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "not measured"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
