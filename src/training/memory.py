"""The memory plan of training: the expected peak of a device, printed before work and refused where it cannot fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from src.kernel.config import UserError
from src.modeling.packing import refuse_unpackable
from src.modeling.policy import read_settings
from src.training.recipe import BUCKET, LIVE_WEIGHTS, Devices, Recipe

GB = 1e9


@dataclass(frozen=True)
class Shape:
    """The sizes of an architecture that cost memory."""

    layers: PositiveInt
    width: PositiveInt
    inner: PositiveInt
    """Width of the feed-forward layer."""
    heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    vocabulary: PositiveInt
    tied: bool
    """LM head and embedding are one matrix."""
    norms: int
    """The norms of a layer."""
    capped: bool
    """Attention scores are soft-capped, which `segments` does in plain PyTorch."""

    @classmethod
    def of(cls, policy: Path) -> Shape:
        """Read `config.json` of a checkpoint folder. Raises UserError when it is not there or cannot be packed."""
        settings = read_settings(policy)
        refuse_unpackable(settings)
        try:
            return cls.from_config(settings)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{policy / 'config.json'}: not the config of a language model ({error!r:.200})") from None

    @classmethod
    def from_config(cls, c: dict[str, Any]) -> Shape:
        """Take the sizes from the settings of transformers. Raises KeyError for one that is missing."""
        gemma = c["model_type"] == "gemma2"
        return cls(
            layers=c["num_hidden_layers"],
            width=c["hidden_size"],
            inner=c["intermediate_size"],
            heads=c["num_attention_heads"],
            kv_heads=c.get("num_key_value_heads") or c["num_attention_heads"],
            head_dim=c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
            vocabulary=c["vocab_size"],
            tied=c.get("tie_word_embeddings", gemma),
            norms=4 if gemma else 2,
            capped=gemma and c.get("attn_logit_softcapping", 50.0) is not None,
        )

    @property
    def layer_weights(self) -> int:
        """Weights in the matrices of one layer."""
        attention = 2 * self.heads * self.head_dim + 2 * self.kv_heads * self.head_dim
        return self.width * (attention + 3 * self.inner)

    @property
    def head_weights(self) -> int:
        return self.vocabulary * self.width

    @property
    def weights(self) -> int:
        """Weights in all matrices; norms are nothing beside them."""
        return self.layers * self.layer_weights + self.head_weights * (1 if self.tied else 2)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes at the peak of one device."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    """The chunk of logits, and the LM head's gradient and bf16 copy."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.head

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GB:.1f}" for name, size in vars(self).items())
        least = "" if self.head else "at least "
        return f"expected peak of a device {least}{self.total / GB:.1f} GB ({parts})"


def plan_memory(shape: Shape, recipe: Recipe, devices: Devices) -> MemoryPlan:
    """Plan the peak of one device under `devices`; docs/trainer.md derives the terms."""
    zero, bf16 = devices.deepspeed, devices.precision == "bfloat16"
    spread = zero is not None and zero.stage == 3
    trained = shape.weights if recipe.lora is None else _lora_weights(shape, recipe.lora.rank)
    states = plan_states(shape.weights, trained, recipe, devices)

    gathered = 4 * min(shape.weights, LIVE_WEIGHTS + shape.head_weights) if spread else 0
    casts = 2 * shape.weights if bf16 and not devices.activation_checkpointing else 0  # kept for the backward pass
    bucket = 4 * min(trained, BUCKET) if zero else 0
    head = shape.head_weights * ((4 if recipe.lora is None else 0) + (2 if bf16 else 0))  # gradient, bf16 copy

    row = max(devices.row_tokens, 2 * recipe.lengths.max_total - 3)  # the longest pair has a row of its own
    return MemoryPlan(
        weights=states.weights + gathered + casts,
        gradients=states.gradients + bucket,
        optimizer=states.optimizer,
        activations=row * token_bytes(shape, recipe.lengths.max_total, devices),
        head=min(devices.head_chunk, row) * shape.vocabulary * 12 + head,
    )


def plan_states(weights: float, trained: float, recipe: Recipe, devices: Devices) -> MemoryPlan:
    """Plan what one device holds between two rows: a lower bound, where no more is known than numbers of weights."""
    zero = devices.deepspeed
    shares = devices.count if zero else 1  # they share gradients and optimiser state; weights only under ZeRO-3
    # What is offloaded from a CPU's memory stays in it.
    kept = 0 if zero is not None and zero.offload and devices.device == "cuda" else 4
    # DeepSpeed keeps another copy of the weights.
    states = (2 if recipe.optimizer == "adamw" else 1) + (1 if zero else 0)
    weights = weights / (shares if zero and zero.stage == 3 else 1)
    return MemoryPlan(kept * weights, kept * trained / shares, kept * states * trained / shares, 0, 0)


def _lora_weights(shape: Shape, rank: int) -> int:
    """Count the weights of both additions to each of a layer's seven matrices."""
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sides = 2 * (shape.width + query) + 2 * (shape.width + key) + 3 * (shape.width + shape.inner)
    return shape.layers * rank * sides


def token_bytes(shape: Shape, keys: int, devices: Devices) -> float:
    """Count the bytes per token kept for the backward pass: of every layer, or of one layer and the input of each.

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


def check_memory(policy: Path | float, recipe: Recipe, devices: Devices) -> MemoryPlan:
    """Return the plan for a checkpoint folder, or for a number of weights. Raises UserError where a device has less."""
    if isinstance(policy, Path):
        plan = plan_memory(Shape.of(policy), recipe, devices)
        smaller = "activation_checkpointing=true, fewer row_tokens, a smaller head_chunk or train.lengths.max_total, "
    else:
        plan, smaller = plan_states(policy, 0 if recipe.lora else policy, recipe, devices), ""
    limit = devices.memory_gb
    if limit is None and devices.device == "cuda":
        import torch

        limit = torch.cuda.get_device_properties(0).total_memory / GB
    elif limit is None:
        import psutil

        limit = psutil.virtual_memory().total / GB * devices.nodes / devices.count
    if plan.total > limit * GB:
        spread = "several devices with +deepspeed@hardware.devices.deepspeed=zero3 or zero3_offload"
        has = f"it has {limit:.0f} GB (hardware.devices.memory_gb)"
        remedy = f"try {smaller}{spread}, +lora@train.lora=rank16 or a smaller model"
        raise UserError(f"hardware.devices: {plan}, but {has}; {remedy}")
    return plan
