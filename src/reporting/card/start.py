"""The card of a run that trains nothing: what was measured of its start policy, behind what that one's own card says.

It lies in the run folder: the policy is somebody else's, and so is the card beside it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from src.kernel.record import CARD
from src.reporting.card.body import experiment, reproduce, stands_in
from src.reporting.card.evaluation import evaluation, published_results
from src.reporting.card.facts import Facts
from src.reporting.card.markdown import literal, scrubbed
from src.reporting.card.metadata import benchmark_results


def start_card(told: Facts) -> tuple[str, int]:
    """The whole card, and how many measurements its head has."""
    own = _own(told)
    if own is None:
        data = ModelCardData(library_name="transformers", pipeline_tag="text-generation")
        text = f"# {literal(_name(told))}\n\nA start policy, evaluated as it is: nothing was trained.\n"
    else:
        data, text = cast(ModelCardData, own.data), f"{own.text.strip()}\n"
    ours = list(benchmark_results(told))
    measured = {(one.dataset_type, one.metric_type) for one in ours}
    theirs = [one for one in data.eval_results or [] if (one.dataset_type, one.metric_type) not in measured]
    data.eval_results, data.model_name = theirs + _told_apart(ours, theirs), data.model_name or _name(told)
    return f"---\n{data.to_yaml()}\n---\n\n{stands_in(told)}{text}\n{_measured(told)}", len(data.eval_results)


def _told_apart(ours: list[EvalResult], theirs: list[EvalResult]) -> list[EvalResult]:
    """A head has one entry a data set, with the arguments of whoever is first: ours stand with the measure there."""
    taken = {one.unique_identifier for one in theirs}
    return [
        replace(one, metric_args={**(one.dataset_args or {}), **(one.metric_args or {})})
        if one.unique_identifier in taken
        else one
        for one in ours
    ]


def _measured(told: Facts) -> str:
    parts = [
        "## Evaluation of this checkpoint\n",
        evaluation(told).lstrip("\n"),
        "## Published results\n",
        experiment(told) + published_results(told),
        "## How to evaluate it again\n",
        reproduce(told),
    ]
    return "\n".join(parts)


def _own(told: Facts) -> ModelCard | None:
    """Its card, where it is a local folder that has one whose head can be read."""
    folder = _repo(told)
    if folder is None or not (folder / CARD).is_file():
        return None
    try:
        card = ModelCard((folder / CARD).read_text())
        data = cast(ModelCardData, card.data)
        data.to_yaml()
        {(one.unique_identifier, one.metric_type) for one in data.eval_results or []}
    except Exception:  # somebody else's words, and the readers of YAML have many errors
        return None
    return card


def _repo(told: Facts) -> Path | None:
    repo = getattr(told.run.model, "repo", None)
    return Path(repo) if repo and Path(repo).is_dir() else None


def _name(told: Facts) -> str:
    """The checkpoint may be any of its family, and `model.id` is that of the family's."""
    model, folder = told.run.model, _repo(told)
    return model.name if folder else scrubbed(str(getattr(model, "repo", None) or model.id or model.name))
