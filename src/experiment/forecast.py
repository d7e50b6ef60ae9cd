"""How long the work of a plan may take: from records of this store, a table of the hardware, or arithmetic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from src.experiment.point import Point
from src.experiment.run import Run
from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.kernel.record import read_record
from src.kernel.store import Store


class Rate(NamedTuple):
    seconds: float
    """Of one device, a unit of work."""
    source: str
    devices: int | None = None
    """That the work is spread over, whatever the stage takes; None: those that it takes."""


Rates = dict[str, Rate]
"""By workload without its devices: kind of work, who does it, hardware."""


def _parts(workload: str) -> tuple[str, int | None]:
    """What rates go by, and the devices; older records do not say these."""
    work, _, last = workload.rpartition(" ")
    return (work, int(last)) if last.isdigit() and work.count(" ") >= 2 else (workload, None)


def rates(points: Sequence[Point], store: Store) -> Rates:
    """Return rates from records of stages that ran in one go, else from the hardware's table, else assumed."""
    told: Rates = {}
    devices: dict[str, int] = {}
    alike = {(p.run.model.name, p.run.ranker.name, p.run.hardware.name): p for p in points}
    for point in alike.values():
        run = point.run
        told_by = (_parts(node.workload) for node in point.nodes if node.work != 0)
        own = {work: count or 1 for work, count in told_by}
        told |= _assumed(run) | _table(run, own)
        devices |= own
    return told | _measured(store, devices)


def rate_of(node: Node, known: Rates) -> Rate | None:
    """None: no figure for this workload."""
    return known.get(_parts(node.workload)[0])


def device_seconds(node: Node, known: Rates) -> float | None:
    """Of all devices together. None: no figure for this workload, or no telling how much it is."""
    rate = rate_of(node, known)
    if not node.work:
        return node.work
    return None if rate is None else rate.seconds * node.work


def seconds(node: Node, known: Rates) -> float | None:
    """On the devices that the stage takes. None: as above."""
    rate, needed = rate_of(node, known), device_seconds(node, known)
    if rate is None or needed is None:
        return needed
    return needed / (rate.devices or _parts(node.workload)[1] or 1)


def _table(run: Run, devices: dict[str, int]) -> Rates:
    """Of the hardware, which says how long a unit takes on all devices that a stage takes."""
    found: Rates = {}
    for model, kinds in run.hardware.seconds_per_unit.items():
        for kind, seconds in kinds.items():
            work = f"{kind} {model} {run.hardware.name}"
            found[work] = Rate(seconds * devices.get(work, 1), "the hardware's table")
    return found


def _assumed(run: Run) -> Rates:
    assumed, devices = run.hardware.assumed, run.hardware.devices
    if assumed is None or devices.peak_tflops is None:
        return {}
    peak = devices.peak_tflops * 1e12
    ranker = sum(getattr(model, "weights", None) or 0.0 for model in run.ranker.models)
    models = [(run.model.name, run.model.weights or 0.0), (run.ranker.name, ranker)]
    return {
        f"{kind} {name} {run.hardware.name}": Rate(seconds, "assumptions, not measured", devices.count)
        for name, weights in models
        if weights
        for kind, seconds in assumed.seconds(weights, peak, 1 if run.ranker.scalar else 2).items()
    }


def _measured(store: Store, devices: dict[str, int]) -> Rates:
    """Stages that found work done, such as answers made in parts, tell nothing. `devices` are those of old records."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for record in _records(store.artifacts()):
        if record.get("work") and not record.get("resumed") and "workload" in record:
            work, count = _parts(record["workload"])
            found[work].append(record["seconds"] * (count or devices.get(work, 1)) / record["work"])
    return {workload: Rate(median(values), "records") for workload, values in found.items()}


def _records(artifacts: Iterable[Path]) -> Iterable[dict[str, Any]]:
    for artifact in artifacts:
        try:
            yield read_record(artifact)
        except UserError:
            continue  # `verify` names it
