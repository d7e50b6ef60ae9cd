"""How long the work of a plan may take: from records of this store, a table of the hardware, or arithmetic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import PositiveFloat

from src.artifact import Node, Store
from src.config import Share, UserError, config
from src.provenance import read_record

if TYPE_CHECKING:
    from src.pipeline import Run


@config
class Assumed:
    """What is taken for granted of hardware on which nothing was measured. A record of the same work replaces it."""

    prompt_tokens: PositiveFloat
    """Mean of a prompt."""
    answer_tokens: PositiveFloat
    """Mean of an answer."""
    sampling: Share
    """Of the devices' peak while answers are sampled."""
    scoring: Share
    """In forward passes."""
    training: Share
    """In forward and backward passes; what is computed twice does not count."""

    def seconds(self, weights: float, peak_flops: float, answers: float) -> dict[str, float]:
        """Kind of work -> seconds a unit, for a model of so many `weights` on devices of `peak_flops` together.

        2 operations a weight and token forward, 6 with the backward pass. `answers` a comparison or score reads.
        """
        prompt, answer = self.prompt_tokens, self.answer_tokens
        pair, forward = prompt + 2 * answer, 2 * weights / peak_flops
        return {
            "responses": forward * (prompt + answer) / self.sampling,
            "ranking": forward * (prompt + answers * answer) / self.scoring,
            "reference": forward * pair / self.scoring,
            "policy": 3 * forward * pair / self.training,
            "divergence": 2 * forward * (prompt + answer) / self.scoring,
        }


class Rate(NamedTuple):
    seconds: float
    """A unit of work."""
    source: str


Rates = dict[str, Rate]
"""By workload: kind of work, who does it, hardware."""


def rates(run: Run, store: Store) -> Rates:
    """What is measured in records of stages that ran in one go, else in the hardware's table, else assumed."""
    table = {
        f"{kind} {model} {run.hardware.name}": Rate(seconds, "the hardware's table")
        for model, kinds in run.hardware.seconds_per_unit.items()
        for kind, seconds in kinds.items()
    }
    return _assumed(run) | table | _measured(store)


def seconds(node: Node, known: Rates) -> float | None:
    """None: no figure for this workload, or no telling how much it is."""
    if not node.work:
        return node.work
    rate = known.get(node.workload)
    return None if rate is None else rate.seconds * node.work


def _assumed(run: Run) -> Rates:
    assumed, devices = run.hardware.assumed, run.hardware.devices
    if assumed is None or devices.peak_tflops is None:
        return {}
    peak = devices.peak_tflops * 1e12 * devices.count
    ranker = sum(getattr(model, "weights", None) or 0.0 for model in run.ranker.models)
    models = [(run.model.name, run.model.weights or 0.0), (run.ranker.name, ranker)]
    return {
        f"{kind} {name} {run.hardware.name}": Rate(seconds, "assumptions, not measured")
        for name, weights in models
        if weights
        for kind, seconds in assumed.seconds(weights, peak, 1 if run.ranker.scalar else 2).items()
    }


def _measured(store: Store) -> Rates:
    found: defaultdict[str, list[float]] = defaultdict(list)
    for record in _records(store.artifacts()):
        if record.get("work") and not record.get("resumed") and "workload" in record:
            found[record["workload"]].append(record["seconds"] / record["work"])
    return {workload: Rate(median(values), "records") for workload, values in found.items()}


def _records(artifacts: Iterable[Path]) -> Iterable[dict[str, Any]]:
    for artifact in artifacts:
        try:
            yield read_record(artifact)
        except UserError:
            continue  # `verify` names it
