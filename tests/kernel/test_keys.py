"""Keys: a change of the config makes anew what it changes and all that follows from it, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tiny_run import ROOT, composed, typed

from src.experiment.graph import nodes_of
from src.experiment.run import Run
from src.kernel.artifact import Node
from src.kernel.config import Free, config, fingerprint
from src.launch.compose import build

NAMES = """
benchmark data.card_datasets experiment hardware.assumed hardware.devices.activation_checkpointing
hardware.devices.attention hardware.devices.count hardware.devices.deepspeed hardware.devices.device
hardware.devices.head_chunk hardware.devices.memory_gb hardware.devices.nodes hardware.devices.peak_tflops
hardware.devices.row_tokens hardware.devices.save_minutes hardware.engine.batch_answers hardware.engine.device
hardware.generation.save_seconds hardware.generation.workers hardware.name
hardware.ranking.attention hardware.ranking.batch_tokens hardware.ranking.device
hardware.ranking.save_seconds hardware.ranking.workers hardware.reference_batch_pairs hardware.seconds_per_unit
method.name mirror model.id model.license model.name model.place model.weights name only part push_private push_to_hub
ranker.batch_prompts ranker.device ranker.frozen_model.id ranker.frozen_model.license ranker.frozen_model.name
ranker.frozen_model.place ranker.frozen_model.weights ranker.name ranker.place ranker.pmi_batch_prompts runs store
variant
"""
FREE = set(NAMES.split())
"""Every key of the default config that changes no result. A key that leaves this list makes old artifacts useless;
one that enters it lets two different results share a key."""

ABSENT = {"data.answers"}
"""Of the default config: whole stages that it has not."""

OTHER = {
    "cpu": "cuda",
    "bfloat16": "float32",
    "float32": "bfloat16",
    "linear": "cosine",
    "rmsprop": "adamw",
    "pairwise": "score",
    "segments": "flex",
}


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    if value is None or isinstance(value, str):
        return OTHER.get(str(value), f"{value}x")
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value * 2 or 1  # still a multiple of what it must be a multiple of
    if isinstance(value, float):
        return value / 2 + 0.1  # stays within [0, 1] where it must
    if isinstance(value, Path):
        return ROOT / "src" / "data" / "embedded" / "part1.jsonl"
    return value[::-1] if isinstance(value, tuple) else {}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """(full key, object that holds it, its name there) of every value of a typed config."""
    for field in dataclasses.fields(value):
        inner, full = getattr(value, field.name), f"{path}.{field.name}".lstrip(".")
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, full)
        elif full not in ABSENT:
            yield full, value, field.name


def keys(run: Run) -> dict[str, str]:
    return {node.name: node.key for node in nodes_of(run)}


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("at_root")
def test_exactly_the_free_fields_leave_every_key_and_the_run_folder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (
        "src.modeling.checkpoints",
        "src.ranking.embedded",
    ):  # they need not be installed
        monkeypatch.setattr(f"{module}.package_version", lambda package, key: package)
    run = typed("iter=2")
    before = keys(run)
    free = []
    for number, (full, _, _) in enumerate(leaves(run)):
        other = copy.deepcopy(run)
        _, owner, name = list(leaves(other))[number]
        object.__setattr__(owner, name, changed(getattr(owner, name)))  # past the door: only keys are asked about
        if full != "iter" and keys(other) == before:
            free.append(full)
        in_name = full in ("name", "model.name", "method.name")  # shown in the name of the folder
        assert (other.folder.name == run.folder.name) == (full == "iter" or (full in FREE and not in_name)), full
    assert set(free) == FREE


@config
class Inner:
    size: int
    label: Free[str]


@config
class Outer:
    parts: tuple[Inner, ...]
    table: dict[str, float]
    place: Path
    note: Free[str | None]


def test_a_fingerprint_says_class_and_result_changing_fields_at_any_depth() -> None:
    outer = Outer(parts=(Inner(size=3, label="x"),), table={"a": 1}, place=Path("b"), note=None)
    inner = {"_target_": "Inner", "size": 3}
    assert fingerprint(outer) == {
        "_target_": "Outer",
        "parts": [inner],
        "table": {"a": 1.0},
        "place": "b",
    }
    with pytest.raises(TypeError, match="artifact key"):
        fingerprint([object()])


def test_two_config_classes_of_one_name_are_refused() -> None:
    other = type("Inner", (), {"__module__": "elsewhere", "__annotations__": {"size": "int"}})
    with pytest.raises(TypeError, match="two configs are called Inner"):
        config(other)


@pytest.mark.usefixtures("at_root")
def test_the_spelling_of_a_number_changes_no_key() -> None:
    for spelling in ("1000", "1000.0", "1e3", "1_000.0"):
        assert keys(typed(f"method.eta={spelling}")) == keys(typed())
    cfg = composed()
    floats = [full for full, owner, name in leaves(build(cfg)) if isinstance(getattr(owner, name), float)]
    whole = [full for full in floats if OmegaConf.select(cfg, full) == int(OmegaConf.select(cfg, full))]
    assert "method.eta" in whole
    for full in whole:
        OmegaConf.update(cfg, full, int(OmegaConf.select(cfg, full)))
    assert keys(build(cfg)) == keys(typed())


def after(nodes: list[Node], first: set[str]) -> set[str]:
    """Names of the `first` nodes and of every node that reads one of them, directly or not."""
    names, found = {node.key: node.name for node in nodes}, set(first)
    for node in nodes:  # inputs come first
        if found & {names[parent.key] for parent in node.inputs}:
            found.add(node.name)
    return found


MOVES = {
    "hardware.engine.batch_answers=3": "",
    "iter=1": "",
    "method.eta=5": "it1/policy",
    "train.lengths.max_total=300": "it1/reference",
    "estimator=score": "it1/pairs",
    "pairing=best_random": "it1/pairs",
    "ranker.tau=1": "it1/ranking base/answers_ranking null/answers_ranking",
    "sampling.temperature=1": "it1/responses base/answers null/answers",
    "sampling.K=4": "it1/responses",
    "data.held_out_prompts=99": "held_out/prompts",
    "data.prompts_per_iteration=32": "it1/prompts it2/prompts",
    "model.revision=v1": "base/policy",
    "held_out.confidence=0.9": "it1/evaluation it2/evaluation",
    "held_out.divergence_prompts=8": "it1/divergence it2/divergence",
}
"""What a change makes anew first."""


@pytest.mark.usefixtures("at_root")
def test_a_change_makes_its_own_artifacts_anew_and_all_after_them_and_no_other() -> None:
    """Model: a published one, so that the ranker's frozen model is another artifact."""
    model = "model=mistral_7b_instruct_v02"
    nodes = nodes_of(typed(model, "iter=2"))
    for override, first in MOVES.items():
        other = keys(typed(model, "iter=2", override))
        moved = {node.name for node in nodes if node.name in other and other[node.name] != node.key}
        assert moved == after(nodes, set(first.split())) & other.keys(), override
