"""`plan`: the graph of a run, what is kept, what would be made and how long it may take. Makes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from src.experiment.forecast import Rates, device_seconds, rate_of, rates, seconds
from src.experiment.graph import START
from src.experiment.point import Point, Queue
from src.experiment.preflight import look_ahead, remarks
from src.experiment.run import Run
from src.experiment.run_folder import made_again
from src.experiment.sweep import SETUP, Sweep
from src.kernel.artifact import Node
from src.kernel.store import Store


def console() -> Console:
    """Return a console without colours, of the terminal's width, or of 160 columns where the output goes to a file."""
    return Console(width=None if Console().is_terminal else 160, color_system=None)


def print_plan(point: Point) -> None:
    """Print the table of what the point makes, and how long it may take."""
    nodes, store = point.nodes, Store(point.run.store)
    known = rates([point], store)
    columns = ("artifact", "key", "state", "reads", "rows", "estimate")
    table = Table(*columns, title=str(point.folder), title_justify="left")
    names = {node.key: node.name for node in nodes}
    for node in nodes:
        state, estimate = "kept", ""
        if not store.has(node):
            state = "to resume" if node.stage.resumable and store.begun(node) else "to make"
            estimate = _clock(seconds(node, known))
        reads = ", ".join(dict.fromkeys(names[parent.key] for parent in node.inputs))
        table.add_row(node.name, node.key[:8], state, reads, str(node.rows or ""), estimate)
    console().print(table)
    print(_total(point.run, nodes, store, known))
    start = next(node for node in nodes if node.name == START)
    trainings = [node for node in nodes if node.job == "training" and not store.has(node)]
    if trainings:  # of all alike; raises UserError where it cannot fit
        lines = look_ahead(trainings[:1], start, store)
        print(*(lines or [f"training: memory is known once {START} is made"]))
    missing = [node for node in point.wanted() if not store.has(node)]
    for line in (*made_again(point), *remarks(missing, store, points=[point])):
        print(line)


def print_stages(sweep: Sweep) -> None:
    """Print what all points make together, stage by stage, and what they would make if nothing were shared."""
    nodes, known = [node for nodes in sweep.nodes for node in nodes], rates(sweep.points, sweep.store)
    unit = "GPU-hours" if sweep.points[0].run.hardware.devices.device == "cuda" else "hours"
    count = len(sweep.points)
    table = Table(title=f"{count} point{'s' * (count > 1)}, one graph", title_justify="left")
    for heading in ("stage", "artifacts without sharing", "distinct", "to make", unit, f"{unit} without sharing"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    stages: defaultdict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        stages[SETUP if node.job == SETUP else f"{node.place.scope} {node.job}"].append(node)
    for name, unshared in stages.items():
        distinct = list({node.key: node for node in unshared}.values())
        missing = list(filter(sweep.missing, distinct))
        hours = (f"{_hours(some, known):.2f}" for some in (missing, unshared))
        table.add_row(name, str(len(unshared)), str(len(distinct)), str(len(missing)), *hours)
    console().print(table)
    missing = sweep.to_make()
    least = "at least " if any(device_seconds(node, known) is None for node in nodes) else ""
    times = f"{least}{_hours(missing, known):.1f} {unit} instead of {_hours(nodes, known):.1f}"
    print(f"{len(missing)} artifacts to make instead of {len(nodes)}: {times}{_sources(missing, known)}")
    for line in remarks(missing, sweep.store, isinstance(sweep.points[0].launcher, Queue), sweep.points):
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
    times = [(node.stage.kind, seconds(node, known)) for node in missing]
    unknown = [kind for kind, time in times if time is None]
    sources, devices = _sources(missing, known), run.hardware.devices
    text = f"{len(missing)} of {len(nodes)} to make"
    if sources or not unknown:
        text += f", about {_clock(sum(time or 0 for _, time in times))}"
    if sources and devices.device == "cuda":
        text += f", {_hours(missing, known):.1f} GPU-hours on {devices.count} device{'s' * (devices.count > 1)}"
    if unknown:
        sources += f"; {len(unknown)} without a measured rate or a known size ({', '.join(sorted(set(unknown)))})"
    return text + sources


def _hours(nodes: Iterable[Node], known: Rates) -> float:
    """Return the hours of all devices together; what has no rate counts as none."""
    return sum(device_seconds(node, known) or 0 for node in nodes) / 3600


def _sources(nodes: Iterable[Node], known: Rates) -> str:
    """Say where the rates come from: records, the hardware's table, assumptions; nothing where there is no rate."""
    sources = sorted({rate.source for node in nodes if node.work and (rate := rate_of(node, known))})
    return f" (rates from {' and '.join(sources)})" if sources else ""


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "not measured"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
