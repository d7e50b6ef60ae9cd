"""Model cards: the README.md of a policy, written from finished artifacts with card.md.jinja.

A card is about its artifact and no part of it: its record says nothing of it, and the last run that has the policy
writes it. A start policy that is only evaluated (`iter=0`) has its card in the run folder.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from src.evaluation.results import Result
from src.experiment.run import Run
from src.kernel.artifact import Node
from src.kernel.config import fingerprint
from src.kernel.disk import write_atomic
from src.kernel.record import CARD, read_record
from src.kernel.rows import read_metrics
from src.kernel.store import Store
from src.reporting.published import comparable_results, measured_tables, published, published_tables, stand_in
from src.reporting.tables import FOR_TEMPLATES, cell, fenced, link, literal, scrubbed

TEMPLATE = Path(__file__).with_name("card.md.jinja")
HUB = "https://huggingface.co"
SETTINGS = ("method", "train", "sampling", "ranker", "estimator", "pairing", "data", "model", "hardware", "seed")
"""Parts of a run that a card lists."""
HIDDEN = ("source_version", "code_version")
"""Keys of the fingerprint that say nothing to a reader."""

Metrics = dict[str, float | None]


class Measure(NamedTuple):
    key: str
    """Its name in metrics.json."""
    metric: str
    """Its type in the model index."""
    text: str
    digits: int


EVALUATION = (
    Measure("win_over_base", "win_probability_over_base", "mean win probability over the start policy", 3),
    Measure("win_over_previous", "win_probability_over_previous", "mean win probability over the policy before", 3),
    Measure("null_win", "win_probability_null", "the null: the start policy against itself, other seeds", 3),
    Measure("tokens", "answer_tokens", "tokens of an answer, mean", 1),
    Measure("base_tokens", "answer_tokens_base", "tokens of an answer of the start policy, mean", 1),
)
DIVERGENCE = (Measure("kl_per_token", "kl_per_token", "KL from the start policy, nats a token", 4),)


class Facts(NamedTuple):
    """What a card is written from: one policy of a run, and what the store has about it."""

    run: Run
    t: int
    """The iteration that made the policy; 0: the start policy."""
    nodes: dict[str, Node]
    """Every artifact of the run, by name."""
    store: Store
    command: str
    """The command of the run, as typed in a shell."""
    record: dict[str, Any]
    """The record of the policy."""
    metrics: dict[str, Metrics]
    """metrics.json of its `evaluation` and `divergence`, as far as they are made."""
    results: list[Result]
    """Its benchmarks, as far as they are made."""

    @property
    def folder(self) -> Path:
        return self.store.path(self.nodes[f"{_label(self.t)}/policy"])

    @property
    def stand_in(self) -> int | None:
        return stand_in(self.run, self.folder, self.record, trained=self.t > 0)

    @property
    def measured(self) -> list[tuple[Measure, Metrics]]:
        """The run's own measurements, without those that its ranker cannot make."""
        parts = (("evaluation", EVALUATION), ("divergence", DIVERGENCE))
        rows = [(one, self.metrics.get(name, {})) for name, measures in parts for one in measures]
        return [(one, numbers) for one, numbers in rows if numbers.get(one.key) is not None]


def write_cards(run: Run, nodes: Sequence[Node], store: Store, command: str, folder: Path | None = None) -> list[str]:
    """Writes the cards that are missing or say something else; returns a line for each that cannot be written.

    `command` is what a shell would be told, `folder` the run's. Raises UserError for unreadable artifacts.
    """
    by_name, failures = {node.name: node for node in nodes}, []
    for t in range(1, run.iter + 1) or [0]:
        facts = _facts(run, t, by_name, store, command)
        if facts and t and CARD not in facts.record["files"]:  # which its stage has written itself
            place = facts.folder / CARD
        elif facts and not t and folder and facts.results:
            place = folder / CARD
        else:
            continue
        data = card(facts).encode(errors="replace")
        try:
            if not place.exists() or place.read_bytes() != data:
                write_atomic(place, data)
        except OSError as error:
            failures.append(f"card: {place} cannot be written ({error.strerror or error}); all else is there")
    return failures


def _facts(run: Run, t: int, nodes: dict[str, Node], store: Store, command: str) -> Facts | None:
    """Reads what is known of a policy; None where it is not made yet."""
    label, policy = _label(t), nodes[f"{_label(t)}/policy"]
    if not store.has(policy):
        return None
    parts = {name: nodes.get(f"{label}/{name}") for name in ("evaluation", "divergence")}
    metrics = {name: read_metrics(store.path(node)) for name, node in parts.items() if node and store.has(node)}
    results = [one for one in comparable_results(run, nodes.values(), store) if one.policy == label]
    return Facts(run, t, nodes, store, command, read_record(store.path(policy)), metrics, results)


def card(facts: Facts) -> str:
    """Fills the template with what is known of a policy."""
    run, t = facts.run, facts.t
    publishers = None if t else _publishers_card(run)
    known, titles = published().get(run.experiment or ""), {one.benchmark.title for one in facts.results}
    filled = ModelCard.from_template(
        _head(facts) if t else _start_head(facts, publishers),
        str(TEMPLATE),
        **facts._asdict(),
        title=title(run, t) if t else literal(_start_name(run)),
        publishers_text=publishers.text.strip() if publishers else None,
        stand_in=facts.stand_in,
        start=_start(run),
        method=literal(sys.modules[type(run.method).__module__].__doc__ or ""),
        loss=fenced(inspect.getdoc(type(run.method)) or ""),
        lineage=_lineage(facts),
        measured=[
            (one.text, cell(numbers, one.key, one.digits), int(numbers["prompts"] or 0))
            for one, numbers in facts.measured
        ],
        benchmarks=measured_tables(facts.results),
        not_measured=[name for name in ("AlpacaEval 2", "MT-Bench", "Arena-Hard") if name not in titles],
        known=known,
        published=published_tables(known, facts.results, [_label(t)]) if known else "",
        settings=_settings(run),
        artifacts=[node for name, node in facts.nodes.items() if name.startswith(f"{_label(t)}/")],
        licence=scrubbed(run.model.license or ""),
        of_wpo="wpo" in f"{run.experiment} {run.method.name}".lower() or f"{run.experiment}".endswith("_hb"),
        **FOR_TEMPLATES,
    )
    return f"{filled}\n"


def _head(facts: Facts) -> ModelCardData:
    """Leaves out ids that the hub would refuse, and the base of a stand-in; the text has them all the same."""
    run, licence = facts.run, facts.run.model.license or ""
    return ModelCardData(
        base_model=None if facts.stand_in else _hub_id(run.model.id),
        license=licence if re.fullmatch(r"[a-z0-9]+([.+-][a-z0-9]+)*", licence) else None,
        datasets=[name for name in run.data.card_datasets if _hub_id(name)] or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[run.method.name, "preference-optimisation", f"iteration-{facts.t}", "iterpref"],
        model_name=title(run, facts.t),
        eval_results=_eval_results(facts) or None,
    )


def _start_head(facts: Facts, publishers: ModelCard | None) -> ModelCardData:
    """Takes the publisher's head, where ours replace the numbers of the same benchmark and measure."""
    data = ModelCardData(library_name="transformers", pipeline_tag="text-generation")
    data = cast(ModelCardData, publishers.data) if publishers else data
    ours = _eval_results(facts)
    measured = {(one.dataset_type, one.metric_type) for one in ours}
    theirs = [one for one in data.eval_results or [] if (one.dataset_type, one.metric_type) not in measured]
    data.eval_results, data.model_name = theirs + ours, data.model_name or _start_name(facts.run)
    return data


def _eval_results(facts: Facts) -> list[EvalResult]:
    """Makes the entries of the model index: the run's own measurements, and every number of its benchmarks."""
    entries: list[EvalResult] = []

    def add(numbers: Metrics, key: str, args: dict[str, Any], **names: Any) -> None:
        ends = {end: numbers.get(f"{key}_{end}") for end in ("low", "high")}
        args = args if None in ends.values() else ends | args
        task = {"task_type": "text-generation", "task_name": "Text Generation"}
        entries.append(EvalResult(**task, **names, metric_value=numbers[key], metric_args=args))

    for one, numbers in facts.measured:
        prompts, args = facts.nodes["held_out/prompts"], {"prompts": numbers["prompts"]}
        if f"{one.key}_low" in numbers:
            args |= {"confidence": facts.run.held_out.confidence, "ranker": facts.run.ranker.name}
        names = {"dataset_type": "held-out-prompts", "dataset_name": "Held-out prompts of the run"}
        names |= {"metric_type": one.metric, "metric_name": one.text}
        add(numbers, one.key, args, **names, dataset_args={"store_key": f"{prompts.stage.kind}/{prompts.key}"})
    for one in facts.results:
        args = {"items": one.items, "comparable": one.departs is None}
        args |= {"best_of": one.best_of} if one.best_of else {}
        for each in (each for each in one.benchmark.measures if one.numbers.get(each.key) is not None):
            names = {"dataset_type": one.name, "dataset_name": one.benchmark.title}
            add(one.numbers, each.key, args, **names, metric_type=each.key, metric_name=each.title)
    return entries


def _hub_id(name: str | None) -> str | None:
    """Returns the name where the hub could have a repository of it."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name or None


def _publishers_card(run: Run) -> ModelCard | None:
    """Reads the card of a start policy that is a local folder, where it has one whose head can be read."""
    file = Path(getattr(run.model, "repo", None) or "nowhere") / CARD
    try:
        publishers = ModelCard(file.read_text())
        publishers.data.to_yaml()
    except Exception:  # not there, or somebody else's words: the readers of YAML have many errors
        return None
    return publishers


def _start_name(run: Run) -> str:
    """Names the checkpoint: it may be any of its family, of which `model.id` names one."""
    repo = getattr(run.model, "repo", None)
    return run.model.name if repo and Path(repo).is_dir() else scrubbed(str(repo or run.model.id or run.model.name))


def _start(run: Run) -> str:
    """Names the start policy, with its page where the hub has one."""
    model = run.model
    return link(model.id, f"{HUB}/{model.id}") if model.id and _hub_id(model.id) else literal(model.name)


def title(run: Run, t: int) -> str:
    """Names a trained policy: as its repository where it goes to the hub."""
    family = run.push_to_hub.rpartition("/")[2] if run.push_to_hub else None
    return f"{family or run.experiment or f'{run.model.name}-{run.method.name}'}-Iter{t}"


def repository(run: Run, t: int) -> str | None:
    """Names where the policy of iteration `t` goes on the hub; None: nowhere."""
    return f"{run.push_to_hub}-Iter{t}" if run.push_to_hub else None


def _label(t: int) -> str:
    """Returns what the names of artifacts of iteration `t` begin with."""
    return f"it{t}" if t else "base"


def _lineage(facts: Facts) -> Iterator[tuple[str, Node, str]]:
    """Yields each policy of the run, and where it is: its page on the hub, or the folder beside this one."""
    run, store = facts.run, facts.store
    for t in range(run.iter + 1):
        node, repo = facts.nodes[f"{_label(t)}/policy"], repository(run, t)
        folder = link("folder", os.path.relpath(store.path(node), facts.folder))
        if t == facts.t:
            place = "this card"
        elif not store.has(node):
            place = "not made yet"
        elif t == 0:
            place = _start(run) if repo else f"{_start(run)}, {folder}"
        else:
            place = link(repo, f"{HUB}/{repo}") if repo else folder
        yield f"iteration {t}" if t else "start policy", node, place


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    """Yields key and value of all that changes results."""
    for part in SETTINGS:
        for key, value in _flat(part, fingerprint(getattr(run, part))):
            yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields a class under the name of its part, and its fields below it."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            if name not in HIDDEN:
                yield from _flat(key if name == "_target_" else f"{key}.{name}", item)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from _flat(f"{key}.{number}", item)
    else:
        yield key, value
