"""LoRA: starts at the reference, trains only its additions, ends in an ordinary checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from padded_twin import assert_close, odd_groups, padded_token_logps
from safetensors.torch import load_file
from tiny_training import assert_same, metrics_of, train_stage, write_reference
from transformers import AutoModelForCausalLM

from src.artifact import WORK
from src.logps import bind_forward
from src.model import load_policy
from src.packed import pack
from src.training.lora import Lora
from src.training.memory import Shape, plan_memory

LORA = Lora(rank=4, alpha=8.0)
# peft 0.21 uses names of transformers that transformers calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def reference(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reference(tmp_path_factory.mktemp("reference"), llama, 11)


def test_with_the_adapter_fresh_or_off_it_is_the_reference(llama: Path, mistral: Path, gemma2: Path) -> None:
    for folder in (llama, mistral, gemma2):
        check_adapter(folder)


def check_adapter(folder: Path) -> None:
    """B = 0 at the start; the stored log-probabilities of the reference are those of the policy itself."""
    model = load_policy(folder, "float32", "cpu")
    bind_forward(model, "none", 7, "segments")
    packed = pack(odd_groups(0))
    with torch.no_grad():
        expected = model(packed).logp
        wrapped = LORA.attach(model)
        assert_close(wrapped(packed).logp, expected, largest=1e-4, mean=2e-5)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        assert (wrapped(packed).logp - expected).abs().max() > 1
        with wrapped.disable_adapter():
            assert_close(wrapped(packed).logp, expected, largest=1e-4, mean=2e-5)


def test_training_moves_the_additions_and_merges_them(reference: Path, llama: Path, tmp_path: Path) -> None:
    """Head, embedding and norms stay as they are, the linear layers move; plain transformers loads the result."""
    train_stage(lora=LORA, lr=1e-2, epochs=2, schedule_epochs=2)(reference, llama, out=tmp_path)
    start, end = load_file(llama / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert start.keys() == end.keys()
    for name, weight in start.items():
        assert torch.equal(end[name], weight) != ("_proj" in name), name
        if "_proj" in name:
            assert torch.linalg.matrix_rank((end[name] - weight).double(), rtol=1e-4) <= LORA.rank
    first, *_, last = metrics_of(tmp_path)
    assert abs(first["chosen_logratio"]) < 1e-4 and abs(last["chosen_logratio"]) > 1e-3
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info


def test_the_merged_policy_is_the_trained_one(llama: Path) -> None:
    wrapped = LORA.attach(load_policy(llama, "float32", "cpu"))
    additions = {}
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            additions[name] = parameter.data.normal_(std=0.1).clone()
    merged = LORA.merge(load_policy(llama, "float32", "cpu"), additions)
    assert "lora" not in "".join(name for name, _ in merged.named_parameters())
    with torch.no_grad():
        got, expected = (padded_token_logps(model, odd_groups(2)) for model in (merged, wrapped))
    assert_close(got, expected, largest=1e-4, mean=1e-5)


def test_checkpoints_hold_the_additions_only_and_resume(reference: Path, llama: Path, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    stage = train_stage(lora=LORA, lr=1e-2, save_minutes=1e-6)
    stage(reference, llama, out=whole)
    stage(reference, llama, out=resumed)
    saved = [path.name for path in (resumed / WORK).glob("checkpoint-*/*.safetensors")]
    assert saved and set(saved) == {"adapter_model.safetensors"}
    shutil.rmtree(resumed / WORK / "checkpoint-3")
    (resumed / "model.safetensors").unlink()
    stage(reference, llama, out=resumed)
    assert_same(*(load_file(out / "model.safetensors") for out in (resumed, whole)), largest=1e-4, mean=1e-6)


def test_the_memory_plan_counts_the_additions() -> None:
    shape = Shape(4, 128, 384, 4, 2, 32, 300, True, 2, False)
    stage = train_stage(lora=LORA)
    trained = plan_memory(shape, stage.recipe, stage.devices).gradients / 4
    sides = 128 + 128 + 128 + 64 + 128 + 64 + 128 + 128 + 3 * (128 + 384)  # in + out of q, k, v, o; gate, up, down
    assert trained == 4 * LORA.rank * sides
