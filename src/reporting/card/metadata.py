"""The YAML head of a card, through the hub's own classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from src.reporting.card.facts import Facts, Metrics, title
from src.reporting.card.licences import hub_identifier


class Measure(NamedTuple):
    """A number of `metrics.json`."""

    key: str
    metric: str
    """Its type in the model index."""
    text: str
    digits: int
    """Behind the point, in the table."""
    interval: bool = False
    """True: `<key>_low` and `<key>_high` are beside it."""


EVALUATION = (
    Measure("win_over_base", "win_probability_over_base", "mean win probability over the start policy", 3, True),
    Measure(
        "win_over_previous", "win_probability_over_previous", "mean win probability over the policy before", 3, True
    ),
    Measure("null_win", "win_probability_null", "the null: the start policy against itself, other seeds", 3, True),
    Measure("tokens", "answer_tokens", "tokens of an answer, mean", 1),
    Measure("base_tokens", "answer_tokens_base", "tokens of an answer of the start policy, mean", 1),
)
DIVERGENCE = (Measure("kl_per_token", "kl_per_token", "KL from the start policy, nats a token", 4),)


class Measured(NamedTuple):
    measure: Measure
    value: float
    interval: tuple[float, float] | None
    prompts: int


def measured(facts: Facts) -> list[Measured]:
    """What the run has measured of the policy so far, without what a ranker does not tell."""
    return [*_found(EVALUATION, facts.evaluation), *_found(DIVERGENCE, facts.divergence)]


def metadata(facts: Facts) -> ModelCardData:
    """Ids that the hub would refuse are left out, and the base of a stand-in; the card's text has them all the same."""
    run = facts.run
    return ModelCardData(
        base_model=None if facts.stand_in else hub_id(run.model.id),
        license=hub_identifier(run.model.license),
        datasets=[name for name in run.data.card_datasets if hub_id(name)] or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[run.method.name, "preference-optimisation", f"iteration-{facts.t}", "iterpref"],
        model_name=title(run, facts.t),
        eval_results=[*(_result(facts, one) for one in measured(facts)), *benchmark_results(facts)] or None,
    )


def hub_id(name: str | None) -> str | None:
    """`name` where the hub could have a repository of it, else None."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name or None


def _found(measures: tuple[Measure, ...], metrics: Metrics | None) -> list[Measured]:
    if metrics is None:
        return []
    found = []
    for measure in measures:
        value = metrics.get(measure.key)
        if value is not None:
            low, high = (metrics.get(f"{measure.key}_{side}") for side in ("low", "high"))
            interval = (low, high) if measure.interval and low is not None and high is not None else None
            found.append(Measured(measure, value, interval, int(metrics["prompts"] or 0)))
    return found


def _result(facts: Facts, one: Measured) -> EvalResult:
    prompts = facts.nodes["held_out/prompts"]
    args: dict[str, Any] = {"prompts": one.prompts}
    if one.interval:
        confidence = facts.run.held_out.confidence
        args |= {"low": one.interval[0], "high": one.interval[1], "confidence": confidence}
        args |= {"ranker": facts.run.ranker.name}
    return EvalResult(
        task_type="text-generation",
        task_name="Text Generation",
        dataset_type="held-out-prompts",
        dataset_name="Held-out prompts of the run",
        dataset_args={"store_key": f"{prompts.stage.kind}/{prompts.key}"},
        metric_type=one.measure.metric,
        metric_name=one.measure.text,
        metric_value=one.value,
        metric_args=args,
    )


def benchmark_results(facts: Facts) -> Iterator[EvalResult]:
    """Every measure of a benchmark that has a value."""
    for one in facts.results:
        for measure in one.benchmark.measures:
            value, interval = one.numbers.get(measure.key), one.interval(measure)
            if value is None:
                continue
            args: dict[str, Any] = {"items": one.items, "comparable": one.departs is None}
            args |= {"best_of": one.best_of} if one.best_of else {}
            yield EvalResult(
                task_type="text-generation",
                task_name="Text Generation",
                dataset_type=one.name,
                dataset_name=one.benchmark.title,
                dataset_args=args,
                metric_type=measure.key,
                metric_name=measure.title,
                metric_value=value,
                metric_args={"low": interval[0], "high": interval[1]} if interval else None,
            )
