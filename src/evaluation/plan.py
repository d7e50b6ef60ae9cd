"""How policies are evaluated: what a benchmark is, and the artifacts of the run's own, on held-out prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from pydantic import PositiveInt

from src.evaluation.divergence import Divergence
from src.evaluation.held_out import HeldOutEvaluation
from src.generation.stage import Merge
from src.kernel.artifact import Node
from src.kernel.config import Confidence, UserError, config

if TYPE_CHECKING:
    from src.experiment.run import Run

CORE = re.compile(r"(base|null|held_out|ranker|it\d+)/[^/]+")
"""Artifacts that a run has without any benchmark."""
RESERVED = re.compile(r"base|null|held_out|ranker|it\d+|generate|rank|train|evaluate|trial|samples|plots|report|policy"
                      r"|prompts|responses|own_responses|outside_.*|ranking|pairs|reference|evaluation|divergence"
                      r"|answers|answers_ranking|joint_answers|joint_ranking")  # fmt: skip
"""Names that a benchmark cannot have: they are those of artifacts, iterations and W&B runs."""
SCORES = "scores"
"""`<policy>/<benchmark>/scores` is what reports, cards, W&B and `compare` read: `metrics.json`, and a row an item."""

NOTHING_PUBLISHED = "nothing is published of it"
"""What `departs` says of a measurement of our own."""


class Policy(NamedTuple):
    """A policy of the run with its answers to the held-out prompts."""

    policy: Node
    answers: Node
    ranking: Node | None
    """None where the ranker's scores cannot be compared between answers ranked apart."""


Policies = Mapping[str, Policy]
"""`base`, `it1`, `it2`, … in this order."""


class Measure(NamedTuple):
    """A number in the `metrics.json` of a benchmark's scores."""

    key: str
    """`<key>_low` and `<key>_high` are beside it where it has an interval."""
    title: str
    """As published tables call it."""
    digits: int = 2
    """Behind the point."""


@runtime_checkable
class Benchmark(Protocol):
    """A further evaluation of policies, chosen by `benchmark=`; its name in the config is the key of a dict."""

    @property
    def title(self) -> str:
        """As published tables call it."""
        ...

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The main one first."""
        ...

    def departs(self, policy: str) -> str | None:
        """Why its numbers of this policy cannot be held against published ones; None: they can."""
        ...

    def nodes(self, name: str, run: Run, policies: Policies) -> Iterator[Node]:
        """Artifacts called `<policy>/<name>/…`; those that end in SCORES hold the numbers.

        Raises UserError for what the run lacks.
        """
        ...


def of_benchmark(name: str) -> bool:
    """Whether an artifact that a run shows as `it2/ifeval/scores` belongs to a benchmark."""
    return CORE.fullmatch(name) is None


def part_of(first: int | None) -> str | None:
    """What `departs` says of the first items only."""
    return None if first is None else f"the first {first} items only"


def part_of_all(items: float | None, published: int | None) -> str | None:
    """The same where a file has fewer items than published, or more; `published` None: that is not known."""
    return None if published in (None, items) else f"{items or 0:.0f} of {published} items"


def other(what: str, ours: object, published: object) -> str | None:
    """`what`, for `departs`, where ours is not as published."""
    return None if ours == published else what


def judged(fields: Mapping[str, Any], published: Mapping[str, Any]) -> str | None:
    """What `departs` says of the fields of a judge's requests."""
    if fields["model"] != published["model"]:
        return f"judged by {fields['model']}"
    return other("its judge asked otherwise", fields, published)


def together(*reasons: str | None) -> str | None:
    """All that make a number depart from what is published, for `departs`."""
    return ", ".join(filter(None, reasons)) or None


def chosen(policies: Policies, of: list[str] | None, key: str) -> dict[str, Policy]:
    """Those named by `of`, all for None. Raises UserError, naming the config's `key`, for a name that is not there."""
    for name in of or []:
        if name not in policies:
            raise UserError(f"{key}: this run has no policy {name}; there are {', '.join(policies)}")
    return {name: policy for name, policy in policies.items() if of is None or name in of}


@config
class HeldOut:
    """The run's own gauge: win rates on held-out prompts under its own ranker, and what they cost in KL."""

    confidence: Confidence
    divergence_prompts: PositiveInt
    """Held-out prompts on which the KL from the base is measured."""

    def nodes(self, t: int, run: Run, current: Policy, previous: Policy, base: Policy, null: Policy) -> Iterator[Node]:
        """Of iteration t."""
        four = (current, previous, base, null)
        answers = tuple(policy.answers for policy in four)
        evaluation = HeldOutEvaluation(confidence=self.confidence, estimator=run.estimator)
        count = run.data.held_out_prompts
        inputs = answers + _rankings(t, run, four)
        yield run.node(f"it{t}/evaluation", evaluation, inputs, rows=count, job="evaluation")
        divergence = Divergence(
            prompts=self.divergence_prompts,
            device=run.hardware.devices.device,
            batch_answers=run.hardware.reference_batch_pairs,
            head_chunk=run.hardware.devices.head_chunk,
        )
        read, work = (current.answers, current.policy, base.policy), self.divergence_prompts
        yield run.node(f"it{t}/divergence", divergence, read, work=work, job="evaluation")


def _rankings(t: int, run: Run, policies: tuple[Policy, ...]) -> tuple[Node, ...]:
    apart = tuple(policy.ranking for policy in policies if policy.ranking is not None)
    if apart:
        return apart
    answers, count = tuple(policy.answers for policy in policies), run.data.held_out_prompts
    merged = run.node(f"it{t}/joint_answers", Merge(), answers, rows=count, job="evaluation")
    return (run.rank(f"it{t}/joint_ranking", merged, count, len(policies)),)
