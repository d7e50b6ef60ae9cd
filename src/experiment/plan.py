"""`plan`: the graph of a run, what is kept, what would be made and how long it may take. Makes nothing."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from src.experiment.forecast import Rates, device_seconds, rate_of, rates, seconds
from src.experiment.graph import START
from src.experiment.point import Point, Queue
from src.experiment.preflight import look_ahead, remarks
from src.experiment.run import Run
from src.experiment.sweep import Sweep
from src.kernel.artifact import Node
from src.kernel.store import Store


def print_plan(point: Point) -> None:
    """Print the table of what the point makes, and how long it may take."""
    run, nodes, store = point.run, point.nodes, Store(point.run.store)
    known = rates([point], store)
    table = Table(title=f"{run.folder}", title_justify="left")
    for heading in ("artifact", "key", "state", "reads", "rows", "estimate"):
        table.add_column(heading, justify="right" if heading in ("rows", "estimate") else "left")
    names = {node.key: node.name for node in nodes}
    for node in nodes:
        reads = ", ".join(names[parent.key] for parent in node.inputs)
        state, estimate = _state(store, node), "" if store.has(node) else _clock(seconds(node, known))
        table.add_row(node.name, node.key[:8], state, reads, str(node.rows or ""), estimate)
    shown = console()
    shown.print(table)
    shown.print(_total(run, nodes, store, known))
    shown.print(_memory(nodes, store))
    for line in remarks([node for node in point.wanted() if not store.has(node)], store):
        shown.print(line)


def print_stages(sweep: Sweep) -> None:
    """Print what all points want together, stage by stage."""
    rows, cuda = sweep.rows(), sweep.points[0].run.hardware.devices.device == "cuda"
    unit = "GPU-hours" if cuda else "hours"
    table = Table(title=f"{_count(len(sweep.points), 'point')}, one graph", title_justify="left")
    table.add_column("stage")
    for heading in ("artifacts, were none shared", "distinct", "to make", unit, f"{unit}, were none shared"):
        table.add_column(heading, justify="right")
    for row in rows:
        hours = [f"{'≥ ' * row.unknown}{s / 3600:.2f}" for s in (row.shared_s, row.apart_s)]
        table.add_row(row.name, str(row.apart), str(len(row.keys)), str(len(row.missing)), *hours)
    console().print(table)
    shared, apart = (sum(times) / 3600 for times in ([r.shared_s for r in rows], [r.apart_s for r in rows]))
    sources = f" (rates from {' and '.join(sweep.sources())})" if sweep.sources() else ""
    least = "at least " if any(row.unknown for row in rows) else ""
    missing, all_ = sum(len(row.missing) for row in rows), sum(row.apart for row in rows)
    print(f"{missing} artifacts to make instead of {all_}: {least}{shared:.1f} {unit} instead of {apart:.1f}{sources}")
    queued = isinstance(sweep.points[0].launcher, Queue)
    for line in remarks(sweep.to_make(), sweep.store, queued):
        print(line)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + "s" * (number != 1)


def console() -> Console:
    """Of the terminal's width, or wide enough in a file."""
    return Console(width=None if Console().is_terminal else 160)


def print_forecast(point: Point) -> None:
    """Print in one line how much there is to make, and how long it may take."""
    store = Store(point.run.store)
    print(_total(point.run, point.nodes, store, rates([point], store)), flush=True)


def _memory(nodes: list[Node], store: Store) -> str:
    start = next(node for node in nodes if node.name == START)
    trainings = [node for node in nodes if node.job == "training" and not store.has(node)]
    if not trainings:
        return "training: nothing to train"
    if not store.has(start):
        return f"training: memory is known once {START} is made"
    return look_ahead(trainings[:1], store.path(start), store)[0]


def _state(store: Store, node: Node) -> str:
    if store.has(node):
        return "kept"
    return "to resume" if node.stage.resumable and store.begun(node) else "to make"


def _total(run: Run, nodes: list[Node], store: Store, known: Rates) -> str:
    """How much there is to make, how long it may take, and whence that is known."""
    missing = [node for node in nodes if not store.has(node)]
    if not missing:
        return f"all {len(nodes)} artifacts are there; nothing to make"
    found = [(node, seconds(node, known)) for node in missing]
    unknown = [node.stage.kind for node, s in found if s is None]
    sources = sorted({rate.source for node in missing if node.work and (rate := rate_of(node, known))})
    text = f"{len(missing)} of {len(nodes)} to make"
    if sources or not unknown:
        text += f", about {_clock(sum(s or 0 for _, s in found))}"
    if sources and run.hardware.devices.device == "cuda":
        text += f", {_gpu_hours(missing, known, run.hardware.devices.count)}"
    text += f" (rates from {' and '.join(sources)})" if sources else ""
    if unknown:
        text += f"; {len(unknown)} without a measured rate or a known size ({', '.join(sorted(set(unknown)))})"
    return text


def _gpu_hours(missing: list[Node], known: Rates, devices: int) -> str:
    """Of devices that work; those that a stage leaves idle do not count."""
    hours: Counter[str] = Counter()
    for node in missing:
        hours[node.stage.kind] += (device_seconds(node, known) or 0) / 3600  # pyright: ignore
    parts = ", ".join(f"{kind} {value:.1f}" for kind, value in hours.most_common() if value)
    return f"{hours.total():.1f} GPU-hours on {devices} device{'s' * (devices > 1)} ({parts})"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "not measured"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
