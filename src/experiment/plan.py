"""`plan`: the graph of a run, what is kept, what would be made and how long it may take. Makes nothing."""

from __future__ import annotations

from collections.abc import Sequence

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


def console() -> Console:
    """Return a console of the terminal's width, or wide enough in a file."""
    return Console(width=None if Console().is_terminal else 160)


def print_plan(point: Point) -> None:
    """Print the table of what the point makes, and how long it may take."""
    nodes, store = point.nodes, Store(point.run.store)
    known = rates([point], store)
    table = Table(title=f"{point.folder}", title_justify="left")
    for heading in ("artifact", "key", "state", "reads", "rows", "estimate"):
        table.add_column(heading, justify="right" if heading in ("rows", "estimate") else "left")
    names = {node.key: node.name for node in nodes}
    for node in nodes:
        state, estimate = "kept", ""
        if not store.has(node):
            state = "to resume" if node.stage.resumable and store.begun(node) else "to make"
            estimate = _clock(seconds(node, known))
        reads = ", ".join(names[parent.key] for parent in node.inputs)
        table.add_row(node.name, node.key[:8], state, reads, str(node.rows or ""), estimate)
    screen = console()
    screen.print(table)
    screen.print(_total(point.run, nodes, store, known))
    screen.print(_memory(nodes, store))
    for line in remarks([node for node in point.wanted() if not store.has(node)], store):
        screen.print(line)


def print_stages(sweep: Sweep) -> None:
    """Print what all points want together, stage by stage."""
    rows, cuda = sweep.rows(), sweep.points[0].run.hardware.devices.device == "cuda"
    unit, count = "GPU-hours" if cuda else "hours", len(sweep.points)
    table = Table(title=f"{count} point{'s' * (count != 1)}, one graph", title_justify="left")
    table.add_column("stage")
    for heading in ("artifacts, were none shared", "distinct", "to make", unit, f"{unit}, were none shared"):
        table.add_column(heading, justify="right")
    for row in rows:
        hours = [f"{'≥ ' * row.unknown}{s / 3600:.2f}" for s in (row.missing_s, row.unshared_s)]
        table.add_row(row.name, str(row.unshared), str(len(row.keys)), str(len(row.missing)), *hours)
    console().print(table)
    missing, unshared = sum(len(row.missing) for row in rows), sum(row.unshared for row in rows)
    hours, unshared_hours = (sum(row.missing_s for row in rows) / 3600, sum(row.unshared_s for row in rows) / 3600)
    least = "at least " if any(row.unknown for row in rows) else ""
    sources = f" (rates from {' and '.join(sweep.sources())})" if sweep.sources() else ""
    print(f"{missing} artifacts to make instead of {unshared}: ", end="")
    print(f"{least}{hours:.1f} {unit} instead of {unshared_hours:.1f}{sources}")
    for line in remarks(sweep.to_make(), sweep.store, isinstance(sweep.points[0].launcher, Queue)):
        print(line)


def print_forecast(point: Point) -> None:
    """Print in one line how much there is to make, and how long it may take."""
    store = Store(point.run.store)
    print(_total(point.run, point.nodes, store, rates([point], store)), flush=True)


def _total(run: Run, nodes: Sequence[Node], store: Store, known: Rates) -> str:
    """Say how much there is to make, how long it may take, and where that is known from."""
    missing = [node for node in nodes if not store.has(node)]
    if not missing:
        return f"all {len(nodes)} artifacts are there; nothing to make"
    times = {node: seconds(node, known) for node in missing}
    unknown = [node.stage.kind for node, time in times.items() if time is None]
    sources = sorted({rate.source for node in missing if (rate := rate_of(node, known))})
    text = f"{len(missing)} of {len(nodes)} to make"
    if sources or not unknown:
        text += f", about {_clock(sum(time or 0 for time in times.values()))}"
    if sources and run.hardware.devices.device == "cuda":
        hours, count = sum(device_seconds(node, known) or 0 for node in missing) / 3600, run.hardware.devices.count
        text += f", {hours:.1f} GPU-hours on {count} device{'s' * (count > 1)}"
    text += f" (rates from {' and '.join(sources)})" if sources else ""
    if unknown:
        text += f"; {len(unknown)} without a measured rate or a known size ({', '.join(sorted(set(unknown)))})"
    return text


def _memory(nodes: Sequence[Node], store: Store) -> str:
    """Say what memory the first training takes. Raises UserError where it cannot fit."""
    start = next(node for node in nodes if node.name == START)
    trainings = [node for node in nodes if node.job == "training" and not store.has(node)]
    if not trainings:
        return "training: nothing to train"
    if not store.has(start):
        return f"training: memory is known once {START} is made"
    return look_ahead(trainings[:1], store.path(start), store)[0]


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "not measured"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
