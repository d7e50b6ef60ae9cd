"""`plan`: the graph of a run, what is kept, what would be made and how long it may take. Makes nothing."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from src.artifact import PARTIAL, Node, Store
from src.card.push import print_push_plan
from src.forecast import Rates, rates, seconds
from src.pipeline import START, Run
from src.runner import run_name
from src.training.memory import check_memory
from src.training.stage import Train


def print_plan(run: Run) -> int:
    """Print the table of `run.nodes()`; returns the exit code."""
    store, nodes = Store(run.store), run.nodes()
    known = rates(run, store)
    table = Table(title=f"{run.runs / run_name(run)}", title_justify="left")
    for heading in ("artifact", "key", "state", "reads", "rows", "estimate"):
        table.add_column(heading, justify="right" if heading in ("rows", "estimate") else "left")
    names = {node.key: node.name for node in nodes}
    for node in nodes:
        reads = ", ".join(names[parent.key] for parent in node.inputs)
        state, estimate = _state(store, node), "" if store.has(node) else _clock(seconds(node, known))
        table.add_row(node.name, node.key[:8], state, reads, str(node.rows or ""), estimate)
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    console.print(_total(run, nodes, store, known))
    console.print(_memory(run, nodes, store))
    print_push_plan(run, nodes, store)
    return 0


def print_forecast(run: Run) -> None:
    """One line: how much there is to make, and how long it may take."""
    store, nodes = Store(run.store), run.nodes()
    print(_total(run, nodes, store, rates(run, store)), flush=True)


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


def _total(run: Run, nodes: list[Node], store: Store, known: Rates) -> str:
    """How much there is to make, how long it may take, and whence that is known."""
    missing = [node for node in nodes if not store.has(node)]
    if not missing:
        return f"all {len(nodes)} artifacts are there; nothing to make"
    found = [(node, seconds(node, known)) for node in missing]
    unknown = [node.stage.kind for node, s in found if s is None]
    sources = sorted({known[node.workload].source for node in missing if node.work and node.workload in known})
    text = f"{len(missing)} of {len(nodes)} to make"
    if sources or not unknown:
        text += f", about {_clock(sum(s or 0 for _, s in found))}"
    if sources and run.hardware.devices.device == "cuda":
        text += f", {_gpu_hours(found, run.hardware.devices.count)}"
    text += f" (rates from {' and '.join(sources)})" if sources else ""
    if unknown:
        text += f"; {len(unknown)} without a measured rate or a known size ({', '.join(sorted(set(unknown)))})"
    return text


def _gpu_hours(found: list[tuple[Node, float | None]], devices: int) -> str:
    """All devices are held as long as a stage takes."""
    hours: Counter[str] = Counter()
    for node, needed in found:
        hours[node.stage.kind] += (needed or 0) * devices / 3600  # pyright: ignore
    parts = ", ".join(f"{kind} {value:.1f}" for kind, value in hours.most_common() if value)
    return f"{hours.total():.1f} GPU-hours on {devices} device{'s' * (devices > 1)} ({parts})"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "not measured"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
