"""Model cards: the README.md of a trained policy, written from finished artifacts with card.md.jinja.

A card is about its artifact and no part of it: its record says nothing of it, and the last run that has the policy
writes it.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from src.evaluation.results import Result
from src.experiment.run import Run
from src.kernel.artifact import Node
from src.kernel.config import fingerprint, leaves
from src.kernel.disk import write_atomic
from src.kernel.processes import legible
from src.kernel.record import CARD, read_record
from src.kernel.rows import read_metrics
from src.kernel.store import Store
from src.reporting.published import is_stand_in, measured_tables, published, published_tables, results_of
from src.reporting.tables import FOR_TEMPLATES, cell, fenced, literal, scrubbed

TEMPLATE = Path(__file__).with_name("card.md.jinja")
HUB = "https://huggingface.co"
SETTINGS = ("method", "train", "sampling", "ranker", "estimator", "pairing", "data", "model", "hardware", "seed")
"""Parts of a run that a card lists."""
MEASURES = {
    "evaluation": {
        "win_over_base": ("mean win probability over the start policy", 3),
        "hard_win_over_base": ("share of prompts won over the start policy, ties one half", 3),
        "lc_win_over_base": ("mean win probability over the start policy at equal length", 3),
        "second_win_over_base": ("mean win probability over the start policy, by the second judge", 3),
        "win_over_previous": ("mean win probability over the policy before", 3),
        "null_win": ("the null: the start policy against itself, other seeds", 3),
        "tokens": ("tokens of an answer, mean", 1),
        "base_tokens": ("tokens of an answer of the start policy, mean", 1),
    },
    "divergence": {"kl_per_token": ("KL from the start policy, nats a token", 4)},
}
"""Stage -> key in its metrics.json, and of the metric in the model index -> what it is, and its digits."""


def write_cards(run: Run, nodes: Sequence[Node], store: Store, command: str) -> list[str]:
    """Write the cards that are missing or say something else; return a line for each that cannot be written.

    `command` is the command as typed in a shell. Raises UserError for unreadable artifacts.
    """
    by_name, failures = {node.name: node for node in nodes}, []
    results = results_of(run, nodes, store)
    for t in range(1, run.iter + 1):
        policy = by_name[f"it{t}/policy"]
        if not store.has(policy):
            continue
        place = store.path(policy) / CARD
        data = card(run, t, by_name, store, command, results).encode()
        try:
            if not place.exists() or place.read_bytes() != data:
                write_atomic(place, data)
        except OSError as error:
            failures.append(f"card: {place} cannot be written ({error.strerror or error}); all else is there")
    return failures


def card(
    run: Run, t: int, nodes: Mapping[str, Node], store: Store, command: str, results: Sequence[Result] = ()
) -> str:
    """Fill the template with what is known of the policy of iteration `t`, which is made."""
    ours = [one for one in results if one.policy == f"it{t}"]
    known, titles = published().get(run.experiment or ""), {one.benchmark.title for one in ours}
    metrics = {stage: dict[str, Any]() for stage in MEASURES}
    for stage, prefix in (("second_evaluation", "second_"), *((stage, "") for stage in MEASURES)):
        if (node := nodes.get(f"it{t}/{stage}")) and store.has(node):
            numbers = {f"{prefix}{key}": value for key, value in read_metrics(store.path(node)).items()}
            metrics[stage.removeprefix("second_")] |= numbers
    filled = ModelCard.from_template(
        ModelCardData(
            base_model=None if is_stand_in(run) else _hub_id(run.model.id),
            license=run.model.license if re.fullmatch(r"[a-z0-9]+([.+-][a-z0-9]+)*", run.model.license or "") else None,
            datasets=[name for name in run.data.card_datasets if _hub_id(name)] or None,
            library_name="transformers",
            pipeline_tag="text-generation",
            tags=[run.method.name, "preference-optimisation", f"iteration-{t}", "iterpref"],
            model_name=title(run, t),
            eval_results=list(_model_index(run, nodes, metrics, ours)) or None,
        ),
        str(TEMPLATE),
        run=run,
        t=t,
        title=title(run, t),
        stand_in=is_stand_in(run),
        judges={which: run.verdict_of(which) for which in run.judges},
        start=_link(run.model.id) or literal(run.model.name),
        method=literal(sys.modules[type(run.method).__module__].__doc__ or ""),
        loss=fenced(inspect.getdoc(type(run.method)) or ""),
        lineage=_lineage(run, t, nodes, store),
        measured=[
            (text, cell(metrics[stage], key, digits), int(metrics[stage]["prompts"] or 0))
            for stage, key, text, digits in _measured(metrics)
        ],
        benchmarks=measured_tables(ours),
        not_measured=[name for name in ("AlpacaEval 2", "MT-Bench", "Arena-Hard") if name not in titles],
        known=known,
        published=published_tables(known, ours, [f"it{t}"]) if known else "",
        settings=_settings(run),
        record=read_record(store.path(nodes[f"it{t}/policy"])),
        command=command,
        artifacts=[node for name, node in nodes.items() if name.startswith(f"it{t}/")],
        licence=scrubbed(run.model.license or ""),
        of_wpo="wpo" in f"{run.experiment} {run.method.name}".lower() or f"{run.experiment}".endswith("_hb"),
        **FOR_TEMPLATES,
    )
    return legible(f"{filled}\n")


def _measured(metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str, int]]:
    """Yield stage, key, text and digits of the run's own measurements, without those that its judge cannot make."""
    for stage, measures in MEASURES.items():
        for key, (text, digits) in measures.items():
            if metrics[stage].get(key) is not None:
                yield stage, key, text, digits


def _model_index(
    run: Run, nodes: Mapping[str, Node], metrics: Mapping[str, Mapping[str, Any]], results: Sequence[Result]
) -> Iterator[EvalResult]:
    """Yield the run's own measurements, then every number of the benchmarks."""

    def entry(numbers: Mapping[str, Any], key: str, text: str, args: dict[str, Any], **dataset: Any) -> EvalResult:
        ends = {end: numbers[f"{key}_{end}"] for end in ("low", "high") if numbers.get(f"{key}_{end}") is not None}
        return EvalResult(
            task_type="text-generation", task_name="Text Generation", metric_type=key, metric_name=text,
            metric_value=numbers[key], metric_args=args | ends, **dataset,
        )  # fmt: skip

    prompts = nodes["held_out/prompts"]
    dataset = {"dataset_type": "held-out-prompts", "dataset_name": "Held-out prompts of the run"}
    place = {"store_key": f"{prompts.stage.kind}/{prompts.key}"}
    for stage, key, text, _ in _measured(metrics):
        args = {"prompts": metrics[stage]["prompts"]}
        if f"{key}_low" in metrics[stage]:
            judge = run.judges["second_" if key.startswith("second_") else ""]
            args |= {"confidence": run.held_out.confidence, "ranker": judge.name}
        yield entry(metrics[stage], key, text, args, **dataset, dataset_args=place)
    for one in results:
        args = {"items": int(one.numbers.get("items") or 0), "comparable": one.departs is None}
        args |= {"best_of": one.best_of} if one.best_of else {}
        for measure in one.benchmark.measures:
            if one.numbers.get(measure.key) is not None:
                yield entry(one.numbers, measure.key, measure.title, args,
                            dataset_type=one.name, dataset_name=one.benchmark.title)  # fmt: skip


def _hub_id(name: str | None) -> str | None:
    """Return the name where the hub could have a repository of it."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name or None


def _link(repo: str | None) -> str | None:
    """Return a link to a repository of the hub, where it could have one."""
    return f"[{literal(repo)}]({HUB}/{repo})" if repo and _hub_id(repo) else None


def title(run: Run, t: int) -> str:
    """Name a trained policy: as its repository where it goes to the hub."""
    family = run.push_to_hub.rpartition("/")[2] if run.push_to_hub else None
    return f"{family or run.experiment or f'{run.model.name}-{run.method.name}'}-Iter{t}"


def repository(run: Run, t: int) -> str | None:
    """Name where the policy of iteration `t` goes on the hub; None: nowhere."""
    return f"{run.push_to_hub}-Iter{t}" if run.push_to_hub and t else None


def _lineage(run: Run, t: int, nodes: Mapping[str, Node], store: Store) -> Iterator[tuple[str, Node, str]]:
    """Yield each policy of the run, and where it is: its page on the hub, or the folder beside this one."""
    here = store.path(nodes[f"it{t}/policy"])
    for other in range(run.iter + 1):
        node = nodes[f"it{other}/policy" if other else "base/policy"]
        place = _link(repository(run, other) or (None if other else run.model.id))
        if other == t:
            place = "this card"
        elif not store.has(node):
            place = "not made yet"
        elif not run.push_to_hub:
            place = ", ".join(filter(None, [place, f"[folder]({os.path.relpath(store.path(node), here)})"]))
        yield f"iteration {other}" if other else "start policy", node, place or literal(run.model.name)


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    """Yield key and value of all that changes results: a class under the name of its part, and its fields below it."""
    for key, value in leaves({part: fingerprint(getattr(run, part)) for part in SETTINGS}, whole=True):
        if not key.endswith(("source_version", "code_version")):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield key.removesuffix("._target_"), text
