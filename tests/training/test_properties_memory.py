"""Laws of the memory plan and of the count of operations, for any architecture, recipe and number of devices."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import train_stage

from src.config import UserError
from src.packed import Group
from src.training.deepspeed import DeepSpeed
from src.training.lengths import Lengths
from src.training.lora import Lora
from src.training.memory import GB, MemoryPlan, Shape, check_memory, plan_memory
from src.training.stage import Train

SIZES = {"layers": 100, "width": 20_000, "inner": 60_000, "heads": 128, "kv_heads": 128, "head_dim": 256} | {
    "vocabulary": 300_000
}
shapes = st.builds(
    Shape,
    **{name: st.integers(1, most) for name, most in SIZES.items()},
    tied=st.booleans(),
    norms=st.sampled_from([2, 4]),
    capped=st.booleans(),
)
zeros = st.builds(
    DeepSpeed, stage=st.sampled_from([2, 3]), offload_optimizer=st.booleans(), offload_weights=st.just(False)
) | st.builds(DeepSpeed, stage=st.just(3), offload_optimizer=st.booleans(), offload_weights=st.just(True))
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "precision": st.sampled_from(["float32", "bfloat16"]),
    "optimizer": st.sampled_from(["rmsprop", "adamw"]),
    "activation_checkpointing": st.booleans(),
    "row_tokens": st.integers(1, 100_000),
    "head_chunk": st.integers(1, 10_000),
    "lora": st.none() | st.builds(Lora, rank=st.integers(1, 256), alpha=st.just(16.0)),
    "lengths": st.integers(2, 20_000).map(lambda n: Lengths(max_prompt=1, max_total=n, truncation="separate")),
    "device": st.sampled_from(["cpu", "cuda"]),
}
alone = st.fixed_dictionaries(CHANGES)
together = st.fixed_dictionaries({**CHANGES, "deepspeed": zeros, "count": st.integers(1, 1000)})
anyhow = alone | together


def plan(shape: Shape, changes: dict[str, Any]) -> MemoryPlan:
    stage = train_stage(**changes)
    return plan_memory(shape, stage.recipe, stage.devices)


@pytest.mark.parametrize("size", SIZES)
@given(shape=shapes, changes=anyhow, more=st.integers(1, 1000))
def test_a_larger_model_never_needs_less(size: str, shape: Shape, changes: dict[str, Any], more: int) -> None:
    larger = dataclasses.replace(shape, **{size: getattr(shape, size) + more})
    assert plan(larger, changes).total >= plan(shape, changes).total


@given(shape=shapes, changes=anyhow, more=st.integers(1, 100_000), attention=st.sampled_from(["segments", "flex"]))
def test_longer_rows_and_chunks_never_need_less(
    shape: Shape, changes: dict[str, Any], more: int, attention: str
) -> None:
    """Under flex, rows that hold the longest pair: of shorter ones the pair is rounded up to another multiple."""
    if attention == "flex":
        longest = 2 * changes["lengths"].max_total - 3
        changes = changes | {"device": "cuda", "attention": "flex", "row_tokens": changes["row_tokens"] + longest}
    before = plan(shape, changes)
    for name in ("row_tokens", "head_chunk"):
        assert plan(shape, changes | {name: changes[name] + more}).total >= before.total
    longer = dataclasses.replace(changes["lengths"], max_total=changes["lengths"].max_total + more)
    if attention == "segments":
        assert plan(shape, changes | {"lengths": longer}).total >= before.total


@given(shape=shapes, changes=together, times=st.integers(2, 64))
def test_more_devices_never_need_more_of_each(shape: Shape, changes: dict[str, Any], times: int) -> None:
    """What is spread is spread evenly, beside what each has of its own."""
    few, many = plan(shape, changes), plan(shape, changes | {"count": changes["count"] * times})
    assert many.total <= few.total and many.offloaded <= few.offloaded
    assert (many.activations, many.head) == (few.activations, few.head)
    assert math.isclose(many.optimizer * times, few.optimizer)


@given(shape=shapes, changes=anyhow)
def test_the_parts_are_the_whole(shape: Shape, changes: dict[str, Any]) -> None:
    """What is offloaded is what the device has less of."""
    found = plan(shape, changes)
    parts = [found.weights, found.gradients, found.optimizer, found.activations, found.head]
    assert math.isclose(found.total, math.fsum(parts)) and min(*parts, found.offloaded) >= 0
    zero = changes.get("deepspeed")
    if zero is not None:
        kept = DeepSpeed(stage=zero.stage, offload_optimizer=False, offload_weights=False)
        assert math.isclose(found.total + found.offloaded, plan(shape, changes | {"deepspeed": kept}).total)


@given(shape=shapes, changes=anyhow)
def test_what_is_advised_needs_less(shape: Shape, changes: dict[str, Any]) -> None:
    before = plan(shape, changes | {"activation_checkpointing": False})
    assert plan(shape, changes | {"activation_checkpointing": True}).total < before.total
    for name in ("row_tokens", "head_chunk"):
        less = {"activation_checkpointing": False, name: max(1, changes[name] // 2)}
        assert plan(shape, changes | less).total <= before.total


def written(shape: Shape) -> dict[str, Any]:
    """As config.json has it."""
    kind = {"model_type": "gemma2" if shape.norms == 4 else "llama", "tie_word_embeddings": shape.tied}
    if shape.norms == 4:
        kind["attn_logit_softcapping"] = 50.0 if shape.capped else None
    return kind | {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
    }


def refused(policy: Path, stage: Train) -> str | None:
    try:
        check_memory(policy, stage.recipe, stage.devices)
    except UserError as error:
        return str(error)
    return None


@given(shape=shapes, changes=anyhow, share=st.floats(0.01, 100))
def test_it_is_refused_where_the_plan_exceeds_the_device_and_nowhere_else(
    shape: Shape, changes: dict[str, Any], share: float
) -> None:
    """Also one bit beside what it needs; the refusal shows the plan and what to try."""
    shape = dataclasses.replace(shape, capped=shape.capped and shape.norms == 4)
    found = plan(shape, changes)
    exact = found.total / GB
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(written(shape)))
        for limit in (exact * share, exact, math.nextafter(exact, 0), math.nextafter(exact, math.inf)):
            said = refused(Path(folder), train_stage(**changes, memory_gb=limit))
            assert (said is not None) == (found.total > limit * GB)
            assert said is None or (said.startswith(f"hardware.devices: {found}, but") and "; try " in said)


tokens = st.lists(st.integers(0, 9), min_size=1, max_size=12)
groups = st.lists(st.builds(Group, tokens, st.lists(tokens, min_size=1, max_size=4)), max_size=6)


@given(shape=shapes, one=groups, other=groups, times=st.integers(1, 9), frozen=st.booleans())
def test_operations_are_those_of_each_pair(
    shape: Shape, one: list[Group], other: list[Group], times: int, frozen: bool
) -> None:
    """Whatever stands beside it, in whatever order."""
    parts = [shape.flops(each, frozen) for each in (one, other)]
    assert shape.flops(other + one, frozen) == pytest.approx(sum(parts))
    assert shape.flops(one * times, frozen) == pytest.approx(times * parts[0])
    assert shape.flops(one, True) <= shape.flops(one) <= 1.5 * shape.flops(one, True)
