"""The memory plan of training: the expected peak of a device, said before work and refused where it cannot fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from src.config import UserError
from src.training.stage import Devices, Recipe

GB = 1e9


@dataclasses.dataclass(frozen=True)
class Shape:
    """What of an architecture costs memory and work."""

    layers: int
    width: int
    inner: int
    """Width of the feed-forward layer."""
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """LM head and embedding are one matrix."""
    norms: int
    """A layer."""
    capped: bool
    """Attention scores are soft-capped, which `segments` does in plain PyTorch."""

    @classmethod
    def of(cls, policy: Path) -> Shape:
        """From `config.json` of a checkpoint folder. Raises UserError when it is not there or not a decoder's."""
        file = policy / "config.json"
        try:
            return cls.from_config(json.loads(file.read_text()))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{file}: not the config of a language model ({error!r})") from None

    @classmethod
    def from_config(cls, c: dict[str, Any]) -> Shape:
        """From the settings of transformers. Raises KeyError for one that is missing."""
        return cls(
            layers=c["num_hidden_layers"],
            width=c["hidden_size"],
            inner=c["intermediate_size"],
            heads=c["num_attention_heads"],
            kv_heads=c.get("num_key_value_heads") or c["num_attention_heads"],
            head_dim=c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
            vocabulary=c["vocab_size"],
            tied=c.get("tie_word_embeddings", c["model_type"] == "gemma2"),
            norms=4 if c["model_type"] == "gemma2" else 2,
            capped=c["model_type"] == "gemma2" and c.get("attn_logit_softcapping", 50.0) is not None,
        )

    @property
    def layer_weights(self) -> int:
        """Of the matrices of one layer."""
        attention = 2 * self.heads * self.head_dim + 2 * self.kv_heads * self.head_dim
        return self.width * (attention + 3 * self.inner)

    @property
    def head_weights(self) -> int:
        return self.vocabulary * self.width

    @property
    def weights(self) -> int:
        """Of all matrices; norms are nothing beside them."""
        return self.layers * self.layer_weights + self.head_weights * (1 if self.tied else 2)

    def flops(self, tokens: int, answer_tokens: int, seen: int) -> float:
        """Of forward and backward, recomputation left out: 6 a weight and token, 12 a head channel and seen token.

        `tokens` pass the layers, `answer_tokens` the LM head; `seen` is the sum over tokens of how many each sees.
        """
        matrices = 6.0 * (tokens * self.layers * self.layer_weights + answer_tokens * self.head_weights)
        return matrices + 12.0 * self.layers * self.heads * self.head_dim * seen


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes at the peak of one device."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    """The chunk of logits and the gradient of the LM head."""

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))

    def __str__(self) -> str:
        parts = ", ".join(f"{f.name} {getattr(self, f.name) / GB:.1f}" for f in dataclasses.fields(self))
        return f"expected peak of a device {self.total / GB:.1f} GB ({parts})"


def plan_memory(shape: Shape, recipe: Recipe, devices: Devices) -> MemoryPlan:
    """The peak of one device under `devices`; docs/trainer.md derives the terms."""
    zero, count = devices.deepspeed, devices.count
    trained = shape.weights if recipe.lora is None else _lora_weights(shape, recipe.lora.rank)
    stage = zero.stage if zero else 0
    bf16 = devices.precision == "bfloat16"
    states = 4 * (2 if recipe.optimizer == "adamw" else 1)
    held = 4 * shape.weights / (count if stage == 3 else 1)
    gathered = 4 * (2 * shape.layer_weights + shape.head_weights) if stage == 3 else 0
    cast = 2 * shape.weights if bf16 else 0  # autocast keeps its copies for one pass over a row
    chunk = min(devices.head_chunk, devices.row_tokens)
    head_gradient = 4 * shape.head_weights if recipe.lora is None else 0
    return MemoryPlan(
        weights=(0 if zero and zero.offload_weights else held) + gathered + cast,
        gradients=4 * trained / (count if stage >= 2 else 1),
        optimizer=0 if zero and zero.offload_optimizer else states * trained / (count if zero else 1),
        activations=devices.row_tokens * token_bytes(shape, recipe.lengths.max_total, devices),
        head=chunk * shape.vocabulary * (6 if bf16 else 8) + head_gradient,
    )


def _lora_weights(shape: Shape, rank: int) -> int:
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sides = 2 * (shape.width + query) + 2 * (shape.width + key) + 3 * (shape.width + shape.inner)
    return shape.layers * rank * sides


def token_bytes(shape: Shape, keys: int, devices: Devices) -> float:
    """What a token keeps for the backward pass: of every layer, or of one layer and the input of each.

    Counted from what autograd saves, and linear in each width; a token sees at most `keys` others.
    """
    product = 2 if devices.precision == "bfloat16" else 4
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = (8 * shape.norms + 8 + (4 - product)) * shape.width + product * (4 * shape.inner + 3 * query + 3.5 * key)
    if shape.capped and devices.attention == "segments":
        layer += 2 * product * query + 8.5 * shape.heads * keys
    if devices.activation_checkpointing:
        return 4 * shape.width * shape.layers + layer
    return layer * (shape.layers + 1)  # one more for gradients on their way


def check_memory(policy: Path, recipe: Recipe, devices: Devices) -> MemoryPlan:
    """The plan, printed. Raises UserError with advice when it exceeds `devices.memory_gb`."""
    plan = plan_memory(Shape.of(policy), recipe, devices)
    limit = devices.memory_gb or _memory_of_this_machine()
    print(f"train: {plan} of {limit:.0f}", flush=True)
    if plan.total > limit * GB:
        raise UserError(f"hardware.devices: {plan}, but it has {limit:.0f} GB; {_advice(devices)}")
    return plan


def _memory_of_this_machine() -> float:
    import psutil

    return psutil.virtual_memory().total / GB


def _advice(devices: Devices) -> str:
    zero = devices.deepspeed
    steps = [
        (not devices.activation_checkpointing, "activation_checkpointing=true"),
        (devices.row_tokens > 1024, f"row_tokens={devices.row_tokens // 2}"),
        (devices.head_chunk > 512, f"head_chunk={devices.head_chunk // 2}"),
        (zero is not None and zero.stage < 3, "deepspeed@hardware.devices.deepspeed=zero3"),
        (zero is not None and not zero.offload_optimizer, "deepspeed@hardware.devices.deepspeed=zero3_offload"),
        (zero is None, "more devices with DeepSpeed, or train.lora"),
    ]
    return "try " + ", ".join(text for wanted, text in steps if wanted)
