"""LoRA: train low-rank additions to the linear layers, merge them into an ordinary checkpoint at the end.

The reference needs no second model: it is the policy with the adapter off, and its log-probabilities are stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import PositiveFloat, PositiveInt

from src.kernel.config import config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@config
class Lora:
    """arXiv:2106.09685, on every linear layer but the LM head; starts as no change at all."""

    rank: PositiveInt
    alpha: PositiveFloat
    """The additions are scaled by alpha / rank."""

    def attach(self, model: PreTrainedModel) -> Any:
        """`model` with fresh trainable additions; its own weights are frozen."""
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=0.0, target_modules="all-linear")  # pyright: ignore[reportArgumentType]
        settings.task_type = None  # the generic wrapper hands our own arguments through
        return get_peft_model(model, settings)

    def merge(self, model: PreTrainedModel, additions: dict[str, Tensor]) -> PreTrainedModel:
        """A plain model: `model`, the starting policy, with trained `additions` (by parameter name) merged in."""
        wrapped = self.attach(model)
        own = dict(wrapped.named_parameters())
        for name, value in additions.items():
            own[name].data.copy_(value)
        return wrapped.merge_and_unload()
