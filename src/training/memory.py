"""The memory plan of training: the expected peak of a device, printed before work and refused where it cannot fit."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.kernel.config import UserError
from src.modeling.packing import refuse_unpackable, row_multiple
from src.training.recipe import BUCKET, LIVE_WEIGHTS, Devices, Recipe

if TYPE_CHECKING:
    from src.modeling.packing import Group

GB = 1e9


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of an architecture that cost memory and work."""

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
        """Reads `config.json` of a checkpoint folder. Raises UserError when it is not there or cannot be packed."""
        file = policy / "config.json"
        try:
            settings = json.loads(file.read_text())
            shape = cls.from_config(settings)
            for field in dataclasses.fields(shape):
                if not isinstance(size := getattr(shape, field.name), int) or not 0 <= size < 2**31:
                    raise ValueError(f"{field.name}: {size!r}")
            refuse_unpackable(settings)
        except (OSError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise UserError(f"{file}: not the config of a language model ({error!r})") from None
        return shape

    @classmethod
    def from_config(cls, c: dict[str, Any]) -> Shape:
        """Takes the sizes from the settings of transformers. Raises KeyError for one that is missing."""
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

    def flops(self, groups: Iterable[Group], frozen: bool = False) -> float:
        """Counts the operations of forward and backward over `groups`.

        Recomputation and what a causal mask hides do not count; what a sliding window hides beyond that does.

        6 a weight and token (4 where weights are `frozen`, as under LoRA), 12 a head channel and pair of tokens of
        which one sees the other. Only answer tokens meet the LM head.
        """
        tokens = answer_tokens = seen = 0
        for prompt, answers in groups:
            lengths, p = [len(answer) - 1 for answer in answers], len(prompt)
            tokens += p + sum(lengths)
            answer_tokens += sum(map(len, answers))
            seen += p * (p + 1) // 2 + sum(n * p + n * (n + 1) // 2 for n in lengths)
        matrices = tokens * self.layers * self.layer_weights + answer_tokens * self.head_weights
        return (4.0 if frozen else 6.0) * matrices + 12.0 * self.layers * self.heads * self.head_dim * seen


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes at the peak of one device, and what a GPU leaves to the memory of its node."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    """The chunk of logits and the gradient of the LM head."""
    offloaded: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, name) for name in self._terms())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {getattr(self, name) / GB:.1f}" for name in self._terms())
        beside = f" and {self.offloaded / GB:.1f} GB of its node's memory" if self.offloaded else ""
        return f"expected peak of a device {self.total / GB:.1f} GB ({parts}){beside}"

    def _terms(self) -> list[str]:
        return [field.name for field in dataclasses.fields(self) if field.name != "offloaded"]


def plan_memory(shape: Shape, recipe: Recipe, devices: Devices) -> MemoryPlan:
    """Plans the peak of one device under `devices`; docs/trainer.md derives the terms."""
    zero, count = devices.deepspeed, devices.count
    on_gpu = devices.device == "cuda"  # what is offloaded from a CPU's memory stays in it
    trained = shape.weights if recipe.lora is None else _lora_weights(shape, recipe.lora.rank)
    stage = zero.stage if zero else 0
    product = 2 if devices.precision == "bfloat16" else 4
    states = 4 * ((2 if recipe.optimizer == "adamw" else 1) + (1 if zero else 0))  # DeepSpeed has a copy of its own
    held = 4 * shape.weights / (count if stage == 3 else 1)
    gathered = 4 * min(shape.weights, LIVE_WEIGHTS + shape.head_weights) if stage == 3 else 0
    kept_casts = 2 * shape.weights if product == 2 and not devices.activation_checkpointing else 0
    gradients, optimizer = (size * trained / (count if zero else 1) for size in (4, states))
    weights_off = on_gpu and zero is not None and zero.offload_weights
    optimizer_off = on_gpu and zero is not None and zero.offload_optimizer
    row = max(devices.row_tokens, 2 * recipe.lengths.max_total - 3)  # the longest pair has a row of its own
    multiple = row_multiple(devices.attention, devices.row_tokens)
    row = math.ceil(row / multiple) * multiple
    head = shape.head_weights * ((4 if recipe.lora is None else 0) + (2 if product == 2 else 0))  # gradient, bf16 copy
    bucket = 4 * min(trained, BUCKET) if zero else 0
    return MemoryPlan(
        weights=(0 if weights_off else held) + gathered + kept_casts,
        gradients=bucket + (0 if optimizer_off else gradients),
        optimizer=0 if optimizer_off else optimizer,
        activations=row * token_bytes(shape, recipe.lengths.max_total, devices),
        head=min(devices.head_chunk, row) * shape.vocabulary * 12 + head,
        offloaded=(held if weights_off else 0) + (gradients + optimizer if optimizer_off else 0),
    )


def _lora_weights(shape: Shape, rank: int) -> int:
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sides = 2 * (shape.width + query) + 2 * (shape.width + key) + 3 * (shape.width + shape.inner)
    return shape.layers * rank * sides


def token_bytes(shape: Shape, keys: int, devices: Devices) -> float:
    """Counts the bytes a token keeps for the backward pass: of every layer, or of one layer and the input of each.

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
    """Plans for a checkpoint folder. Raises UserError with advice when it exceeds what a device has."""
    plan = plan_memory(Shape.of(policy), recipe, devices)
    limit = devices.memory_gb or _memory_here(devices)
    if plan.total > limit * GB:
        raise UserError(f"hardware.devices: {plan}, but it has {limit:.0f} GB; {_advice(recipe, devices)}")
    return plan


def _memory_here(devices: Devices) -> float:
    """Returns the memory of one device of this machine, GB."""
    if devices.device == "cuda":
        import torch

        return torch.cuda.get_device_properties(0).total_memory / GB
    import psutil

    return psutil.virtual_memory().total / GB * devices.nodes / devices.count


def _advice(recipe: Recipe, devices: Devices) -> str:
    zero, place = devices.deepspeed, "hardware.devices"
    steps = [
        (not devices.activation_checkpointing, f"{place}.activation_checkpointing=true"),
        (devices.row_tokens > 2 * recipe.lengths.max_total, f"{place}.row_tokens={devices.row_tokens // 2}"),
        (devices.head_chunk > 512, f"{place}.head_chunk={devices.head_chunk // 2}"),
        (zero is None, f"several devices, {place}.count=8 +deepspeed@{place}.deepspeed=zero3"),
        (zero is not None and zero.stage < 3, f"deepspeed@{place}.deepspeed=zero3"),
        (
            zero is not None and devices.device == "cuda" and not zero.offload_optimizer,
            f"deepspeed@{place}.deepspeed=zero3_offload",
        ),
        (recipe.lora is None, "+lora@train.lora=rank16"),
        (recipe.lengths.max_total > 512, f"train.lengths.max_total={recipe.lengths.max_total // 2}"),
    ]
    return "try " + ", ".join([text for wanted, text in steps if wanted] or ["a smaller model"])
