"""The trained policy as an ordinary checkpoint folder, from whatever held it while it was trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from src.modeling.checkpoints import share_weights
from src.modeling.model import load_policy
from src.training.stage import Recipe

CARRIED_OVER = (
    "tokenizer*",
    "*.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "vocab.*",
    "merges.txt",
)
"""Files of the starting policy that training does not touch."""


def save_policy(trainer: Trainer, recipe: Recipe, policy: Path, out: Path) -> None:
    """Write weights in `recipe.save_dtype` and what belongs to them; every process calls it, the first one writes."""
    trained = _trained_weights(trainer)
    if not trainer.is_world_process_zero():
        return
    unset_hf_deepspeed_config()  # or loading would wait for the other processes
    model = load_policy(policy, "float32", "cpu")
    if recipe.lora:
        model = recipe.lora.merge(model, trained)
    else:
        own = dict(model.named_parameters())
        for name, value in trained.items():
            own[name].data.copy_(value)
    model.to(getattr(torch, recipe.save_dtype)).save_pretrained(out)  # pyright: ignore
    share_weights(out)
    for pattern in CARRIED_OVER:
        for path in sorted(policy.glob(pattern)):
            shutil.copy2(path, out / path.name)


def _trained_weights(trainer: Trainer) -> dict[str, Tensor]:
    """Trained parameters by name, fp32, on the CPU of the first process; empty in the others.

    DeepSpeed's are gathered one by one from the optimiser's fp32 copies.
    """
    first, found = trainer.is_world_process_zero(), {}
    model: Any = trainer.model
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            value = _gathered(parameter) if trainer.is_deepspeed_enabled else parameter.data
            if first:
                assert value is not None, f"DeepSpeed has no fp32 copy of {name}"
                found[name] = value.to("cpu", torch.float32, copy=True)
    return found


def _gathered(parameter: Tensor) -> Tensor | None:
    from deepspeed.utils import safe_get_full_fp32_param

    return safe_get_full_fp32_param(parameter)
