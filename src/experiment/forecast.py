"""Forecasts of the time that a plan takes: from records of this store, a table of the hardware, or arithmetic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from statistics import median
from typing import NamedTuple

from src.experiment.point import Point
from src.experiment.run import Run
from src.kernel.artifact import Node
from src.kernel.config import UserError, fingerprint
from src.kernel.record import read_record
from src.kernel.store import Store


class Rate(NamedTuple):
    """The time that a unit of work takes, and its source."""

    seconds: float
    """Seconds that one device takes for a unit of work."""
    source: str
    """Its source: records, the hardware's table, or assumptions."""
    devices: int | None = None
    """The devices that the work is spread over; None: those that the stage takes."""


Rates = dict[str, Rate]
"""Workload (kind of work, who does it, hardware) without its devices -> rate."""


def _parts(workload: str) -> tuple[str, int]:
    """Split a workload into the key of its rate and the number of devices."""
    work, _, devices = workload.rpartition(" ")
    return work, int(devices)


def rates(points: Sequence[Point], store: Store) -> Rates:
    """Return rates from records of stages that ran in one go, else from the hardware's table, else assumed."""
    known: Rates = {}
    for point in {(p.run.model.name, p.run.ranker.name, p.run.hardware.name): p for p in points}.values():
        run = point.run
        known |= _assumed(run)
        devices = dict(_parts(node.workload) for node in point.nodes if node.work != 0)
        for model, kinds in run.hardware.seconds_per_unit.items():
            for kind, seconds in kinds.items():  # on all devices that the stage takes
                work = f"{kind} {model} {run.hardware.name}"
                known[work] = Rate(seconds * devices.get(work, 1), "the hardware's table")
    measured: defaultdict[str, list[float]] = defaultdict(list)
    for artifact in store.artifacts():
        with suppress(UserError):  # a damaged record: `verify` names it
            record = read_record(artifact)
            if record.get("work") and not record["resumed"]:  # else some of the work was done before
                work, count = _parts(record["workload"])
                measured[work].append(record["seconds"] * count / record["work"])
    return known | {work: Rate(median(values), "records") for work, values in measured.items()}


def rate_of(node: Node, known: Rates) -> Rate | None:
    """Return the rate of the node's work; None where there is no figure for it."""
    return known.get(_parts(node.workload)[0]) if node.work != 0 else None


def device_seconds(node: Node, known: Rates) -> float | None:
    """Return the time of all devices together; None without a rate, or where it is not known how much work it is."""
    rate = rate_of(node, known)
    if not node.work:
        return node.work
    return None if rate is None else rate.seconds * node.work


def seconds(node: Node, known: Rates) -> float | None:
    """Return the time on the devices that the stage takes; None where device_seconds gives none."""
    rate, needed = rate_of(node, known), device_seconds(node, known)
    return needed if rate is None or needed is None else needed / (rate.devices or _parts(node.workload)[1])


def _assumed(run: Run) -> Rates:
    """Return rates from the sizes of the models and what the hardware is assumed to make of its peak."""
    assumed, devices = run.hardware.assumed, run.hardware.devices
    if assumed is None or devices.peak_tflops is None:
        return {}
    sizes: list[tuple[str, float | None, int, int | None]] = [(run.model.name, run.model.weights, 1, devices.count)]
    for ranker in (*run.judges.values(), run.ranker):
        of_its_own = (model for model in ranker.models if fingerprint(model) != fingerprint(run.model))
        # Of the policy it reads a template.
        weights = sum(getattr(model, "weights", None) or 0.0 for model in of_its_own)
        sizes.append((ranker.name, weights, 1 if ranker.scalar else 2, None))
    return {
        f"{kind} {name} {run.hardware.name}": Rate(seconds, "assumptions, not measured", count)
        for name, weights, answers, count in sizes
        if weights
        for kind, seconds in assumed.seconds(weights, devices.peak_tflops * 1e12, answers).items()
    }
