"""Keys: a change of the config makes anew what it changes and all that follows from it, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny_run import ROOT, typed

from src.experiment.graph import nodes_of
from src.experiment.run import Run
from src.kernel.artifact import Node, Stage, fingerprint_hash
from src.kernel.config import Free, config, fingerprint

# Every key of the default config ------------------------------------------------------------------------------------

OF_A_MODEL = "id license name place weights"
OF_THE_RANKER = "batch_prompts device name place pmi_batch_prompts"
FREE_KEYS = {
    "": "benchmark experiment mirror name only part push_private push_to_hub replace runs store variant",
    "data.": "card_datasets",
    "hardware.": "assumed name reference_batch_pairs seconds_per_unit",
    "hardware.devices.": (
        "activation_checkpointing attention count deepspeed device head_chunk memory_gb nodes "
        "peak_tflops row_tokens save_minutes"
    ),
    "hardware.engine.": "batch_answers device",
    "hardware.generation.": "save_seconds workers",
    "hardware.ranking.": "attention batch_tokens device save_seconds workers",
    "method.": "name",
    "model.": f"{OF_A_MODEL} rest",
    **{f"{whose}ranker.": OF_THE_RANKER for whose in ("", "held_out.")},
    "held_out.second.": "batch_prompts device name",
    "held_out.second.language_model.": OF_A_MODEL,
    **{f"{whose}ranker.frozen_model.": f"{OF_A_MODEL} rest" for whose in ("", "held_out.")},
}
FREE = {prefix + name for prefix, names in FREE_KEYS.items() for name in names.split()}
"""Every key of the default config that changes no result. A key that leaves this list makes old artifacts useless;
one that enters it lets two different results share a key."""
ABSENT = "data.answers"
"""A whole stage that the default config has not."""
OTHER = {"cpu": "cuda", "bfloat16": "float32", "float32": "bfloat16", "linear": "cosine", "rmsprop": "adamw"}
OTHER |= {"pairwise": "score", "segments": "flex"}


def changed(value: Any) -> Any:
    """Return another value of the same kind."""
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
    """Yield full key, object that holds it, and its name there, of every value of a typed config."""
    for field in dataclasses.fields(value):
        inner, full = getattr(value, field.name), f"{path}.{field.name}".lstrip(".")
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, full)
        elif full != ABSENT:
            yield full, value, field.name


def keys(run: Run) -> dict[str, str]:
    return {node.name: node.key for node in nodes_of(run)}


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_exactly_the_free_fields_leave_every_key_and_the_run_folder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (
        "src.modeling.checkpoints",
        "src.ranking.embedded",
        "src.ranking.independent",
    ):  # they need not be installed
        monkeypatch.setattr(f"{module}.package_version", lambda package, key: package)
    run = typed("iter=2")
    before = keys(run)
    free = set()
    for number, (full, _, _) in enumerate(leaves(run)):
        if full == "held_out.second.place":
            continue  # its models are named after it
        other = copy.deepcopy(run)
        _, owner, name = list(leaves(other))[number]
        object.__setattr__(owner, name, changed(getattr(owner, name)))  # past the door: only keys are asked about
        if full != "iter" and keys(other) == before:
            free.add(full)
        in_name = full in ("name", "model.name", "method.name")  # shown in the name of the folder
        assert (other.folder.name == run.folder.name) == (full == "iter" or (full in FREE and not in_name)), full
    assert free == FREE


def test_the_spelling_of_a_number_changes_no_key() -> None:
    for spelling in ("1000", "1000.0", "1e3", "1_000.0"):
        assert keys(typed(f"method.eta={spelling}")) == keys(typed())


def after(nodes: list[Node], first: set[str]) -> set[str]:
    """Return the names of the `first` nodes and of every node that reads one of them, directly or not."""
    names, reached = {node.key: node.name for node in nodes}, set(first)
    for node in nodes:  # inputs come first
        if reached & {names[parent.key] for parent in node.inputs}:
            reached.add(node.name)
    return reached


EVALUATED = "it1/evaluation it2/evaluation it1/second_evaluation it2/second_evaluation"
MOVES = {
    **dict.fromkeys(("hardware.engine.batch_answers=3", "iter=1"), ""),
    **{"method.eta=5": "it1/policy", "train.lengths.max_total=300": "it1/reference"},
    **dict.fromkeys(("estimator=score", "pairing=win_rate"), "it1/pairs"),
    "ranker.tau=1": "it1/ranking",
    "held_out.ranker.tau=1": "base/answers_ranking null/answers_ranking it1/answers_ranking it2/answers_ranking",
    "held_out.second.tau=1": "base/{0} null/{0} it1/{0} it2/{0}".format("second_answers_ranking"),
    "held_out.estimator.tau=2": EVALUATED,
    **dict.fromkeys(("sampling.temperature=1", "sampling.K=4"), "it1/responses"),
    "held_out.sampling.temperature=1": "base/answers null/answers it1/answers it2/answers",
    **dict.fromkeys(("data.held_out_prompts=99", "data.held_out_start=9"), "held_out/prompts"),
    "data.prompts_per_iteration=32": "it1/prompts it2/prompts",
    "model.revision=v1": "base/policy",
    "held_out.confidence=0.9": f"{EVALUATED} it1/divergence it2/divergence",
    "held_out.divergence_prompts=8": "it1/divergence it2/divergence",
}
"""A change, and the artifacts that it makes anew first."""


def test_a_change_makes_its_own_artifacts_anew_and_all_after_them_and_no_other() -> None:
    """Model: a published one, so that the ranker's frozen model is another artifact."""
    model = "model=mistral_7b_instruct_v02"
    nodes = nodes_of(typed(model, "iter=2"))
    for override, first in MOVES.items():
        other = keys(typed(model, "iter=2", override))
        moved = {node.name for node in nodes if node.name in other and other[node.name] != node.key}
        assert moved == after(nodes, set(first.split())) & other.keys(), override


# Random configs -----------------------------------------------------------------------------------------------------


@config
class Part:
    number: float
    label: Free[str]


@config
class Whole:
    kind: ClassVar[str] = "toy"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    text: str
    count: int
    share: float | None
    named: dict[str, Any]
    parts: tuple[Part, ...]
    place: Path
    threads: Free[int]

    def __call__(self, *inputs: Path, out: Path) -> None: ...


numbers = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.sampled_from("ab é\n\"'🙂"), max_size=3)
plain = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1e300, -0.25]) | words
toys = st.builds(
    Whole,
    text=words,
    count=st.integers(),
    share=st.none() | numbers,
    named=st.dictionaries(words, plain | st.dictionaries(words, plain, max_size=2), max_size=3),
    parts=st.lists(st.builds(Part, number=numbers, label=words), max_size=2).map(tuple),
    place=words.map(Path),
    threads=st.integers(),
)


def node(toy: Whole, *inputs: Node) -> Node:
    return Node("x", cast(Stage, toy), inputs)


def without_free(toy: Whole) -> Any:
    """Return what may change a result, as a value that can be compared; types tell 1, 1.0 and True apart."""
    kept = [repr(value) for value in (toy.text, toy.count, toy.share, toy.place)]
    return kept, [repr(part.number) for part in toy.parts], json.dumps(toy.named, sort_keys=True)


@given(toys, toys, st.sets(st.sampled_from([field.name for field in dataclasses.fields(Whole)])))
def test_the_key_changes_exactly_with_what_can_change_a_result(one: Whole, other: Whole, names: set[str]) -> None:
    """A free field, the order of names and a way through JSON are no change."""
    mixed = dataclasses.replace(one, **{name: getattr(other, name) for name in names})
    assert (node(mixed).key == node(one).key) == (without_free(mixed) == without_free(one))
    turned = {name: one.named[name] for name in reversed(one.named)}
    assert node(dataclasses.replace(one, named=turned, threads=other.threads)).key == node(one).key
    assert fingerprint_hash(json.loads(json.dumps(fingerprint(one)))) == fingerprint_hash(fingerprint(one))


@given(toys, toys)
def test_what_is_read_is_part_of_the_key_and_so_is_its_order(one: Whole, other: Whole) -> None:
    first, second = node(one), node(other)
    assume(first.key != second.key)
    reading = [node(one, *inputs) for inputs in ((), (first,), (second,), (first, second), (second, first))]
    assert len({node.key for node in reading}) == 5


def test_what_is_no_config_and_a_second_config_of_one_name_are_refused() -> None:
    with pytest.raises(TypeError, match="artifact key"):
        fingerprint([object()])
    with pytest.raises(TypeError, match="two configs are called Part"):
        config(type("Part", (), {"__module__": "elsewhere", "__annotations__": {"size": "int"}}))
