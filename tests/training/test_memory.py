"""The memory plan against what PyTorch itself keeps."""

from __future__ import annotations

import dataclasses
import json
import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from answer_twin import drawn
from tiny_run import typed
from tiny_training import LENGTHS, ZERO, train_stage, write_reference
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from bench.shapes import config_of
from src.experiment.graph import nodes_of
from src.experiment.preflight import check_settings
from src.kernel.config import UserError
from src.modeling.logps import answer_states, make_scorer
from src.modeling.packing import Group, pack
from src.training.memory import MemoryPlan, Shape, plan_memory, token_bytes
from src.training.recipe import DeepSpeed

GEMMA = {"model_type": "gemma2", "query_pre_attn_scalar": 32, "tie_word_embeddings": True}


def settings(layers: int, **changes: Any) -> dict[str, Any]:
    usual = {"model_type": "llama", "num_hidden_layers": layers, "head_dim": 32, "vocab_size": 300}
    usual |= {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}
    return usual | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None} | changes


def model_of(config: dict[str, Any]) -> Any:
    return make_scorer(AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).float()).train()


def saved_bytes(config: dict[str, Any], precision: str) -> float:
    """Return what autograd keeps of a token of 240, weights and their bf16 copies left out."""
    model, chance = model_of(config), random.Random(0)
    packed = pack([Group(drawn(chance, 80), [drawn(chance, 81), drawn(chance, 81)])])
    weights = {p.data_ptr() for p in model.parameters()}
    matrices = {p.numel() for p in model.parameters() if p.dim() == 2}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        copy = t.dtype == torch.bfloat16 and t.dim() == 2 and t.numel() in matrices
        if storage.data_ptr() not in weights and not copy:
            kept[storage.data_ptr()] = (storage.nbytes(), t)
        return t

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        answer_states(model, packed).sum()
    return sum(size for size, _ in kept.values()) / 240


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_size": 256, "intermediate_size": 768},
        {"num_attention_heads": 8, "num_key_value_heads": 4},
        GEMMA,
        GEMMA | {"attn_logit_softcapping": None},
        GEMMA | {"hidden_size": 256, "num_attention_heads": 8},
    ],
)
def test_activations_of_a_layer_are_what_autograd_keeps_within_a_sixth(precision: Any, changes: dict[str, Any]) -> None:
    """The difference of four layers and two is that of two layers; what lies outside the layers falls out.

    A token sees at most 160 others. Gemma-2's capped scores are plain PyTorch, which keeps them.
    """
    devices = train_stage(precision=precision).devices
    kept = [saved_bytes(settings(layers, **changes), precision) for layers in (4, 2)]
    shape = Shape.from_config(settings(2, **changes))
    four, two = (token_bytes(dataclasses.replace(shape, layers=layers), 160, devices) for layers in (4, 2))
    assert four - two == pytest.approx(kept[0] - kept[1], rel=1 / 6)


def test_weights_are_counted_to_a_hundredth() -> None:
    for changes in ({}, {"tie_word_embeddings": True}, {"model_type": "mistral"}, GEMMA):
        config = settings(3, **changes)
        assert Shape.from_config(config).weights == pytest.approx(model_of(config).num_parameters(), rel=0.01), changes
    for model, billions in (("gemma-2-9b", 9.24), ("mistral-7b", 7.24)):  # as published
        assert Shape.from_config(config_of(model)).weights / 1e9 == pytest.approx(billions, rel=0.005)


# The plan ----------------------------------------------------------------------------------------------------------

WEIGHTS = 4 * Shape.from_config(settings(4)).weights
"""Bytes of the weights in fp32."""


def plan(**changes: Any) -> MemoryPlan:
    stage = train_stage(**changes)
    return plan_memory(Shape.from_config(settings(4)), stage.recipe, stage.devices)


def test_one_device_holds_weights_gradients_and_state_in_fp32() -> None:
    assert (plan().weights, plan().gradients, plan().optimizer) == (WEIGHTS, WEIGHTS, WEIGHTS)
    assert plan(optimizer="adamw").optimizer == 2 * WEIGHTS
    assert plan(precision="bfloat16").weights == 1.5 * WEIGHTS, "bf16 copies are kept for the backward pass"
    assert plan(precision="bfloat16", activation_checkpointing=True).weights == WEIGHTS


def test_zero_spreads_what_it_says() -> None:
    """The model is smaller than DeepSpeed's buckets: one holds all gradients, and all weights are gathered at once."""
    zero2, zero3 = (plan(count=8, device="cuda", deepspeed=ZERO[stage]) for stage in (2, 3))
    assert zero2.gradients == zero3.gradients == WEIGHTS / 8 + WEIGHTS
    assert zero2.optimizer == zero3.optimizer == 2 * WEIGHTS / 8, "RMSprop's state, and the fp32 copy it works on"
    assert (zero2.weights, zero3.weights) == (WEIGHTS, WEIGHTS / 8 + WEIGHTS)
    offload = DeepSpeed(stage=3, offload=True)
    offloaded = plan(count=8, device="cuda", deepspeed=offload)
    assert (offloaded.weights, offloaded.gradients, offloaded.optimizer) == (WEIGHTS, WEIGHTS, 0)
    assert plan(count=8, deepspeed=offload) == plan(count=8, deepspeed=ZERO[3]), "a CPU offloads to its own memory"


def test_rows_chunks_and_recomputation_cost_what_they_should() -> None:
    longest = 2 * LENGTHS.max_total - 3  # two answers of 39 tokens after a prompt of one, without their last
    assert plan(row_tokens=longest).activations == plan(row_tokens=1).activations
    assert plan(row_tokens=2 * longest).activations == 2 * plan(row_tokens=1).activations
    assert plan(activation_checkpointing=True).activations < plan().activations / 2
    assert plan(head_chunk=64).head - plan(head_chunk=32).head == 32 * 300 * 12


def test_a_plan_that_does_not_fit_is_refused_with_advice_and_nothing_is_loaded(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = write_reference(tmp_path / "reference", llama, 4)
    monkeypatch.setattr("src.training.trainer.load_policy", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match=r"^hardware\.devices: expected peak .* try activation_checkpointing=true"):
        train_stage(memory_gb=1e-4, row_tokens=4000)(reference, llama, out=tmp_path)


def test_published_weights_are_a_lower_bound_before_a_model_is_fetched() -> None:
    """8.03e9 weights, gradients and RMSprop states in fp32."""
    for hardware, fits in {"1xa100_80gb": False, "1xh200_141gb": True, "8xa100_80gb": True}.items():
        nodes = nodes_of(typed("experiment=llama3_8b_instruct_sppo", f"hardware={hardware}", "model.repo=no/such"))
        (train,) = (node for node in nodes if node.name == "it1/policy")
        with nullcontext() if fits else pytest.raises(UserError, match=r"^hardware\.devices: .* at least 96\.4 GB"):
            check_settings([train])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json: no config of a model"),
        (json.dumps({"model_type": "llama"}), "config.json: not the config of a language model"),
        (json.dumps(settings(1, num_hidden_layers=-1)), "config.json: not the config of a language model"),
        (json.dumps(settings(1, rope_parameters={"rope_type": "longrope"})), "^model: .*longrope rotary"),
    ],
)
def test_what_is_no_model_or_cannot_be_packed_is_refused_with_the_plan(text: str, message: str, tmp_path: Path) -> None:
    """So before the first answer is sampled. tests/bad_inputs.md has other architectures, dropout, dynamic rotary."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        Shape.of(tmp_path)
