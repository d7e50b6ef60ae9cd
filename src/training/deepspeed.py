"""DeepSpeed's settings for our trainer: typed here, so that a mistaken key is refused before any work."""

from __future__ import annotations

import os
from typing import Any, Literal

from src.kernel.config import Free, config
from src.modeling.model import Precision

LIVE_WEIGHTS = 500_000_000
"""ZeRO-3 holds up to so many gathered weights at a time, and one matrix more where that alone is larger."""
BUCKET = 50_000_000
"""Gradients exchanged at a time."""


def keep_head_whole(engine: Any) -> None:
    """Under ZeRO-3, let the LM head be gathered once a step: it stays whole from its first row to its last."""
    weight = engine.module.get_output_embeddings().weight
    if hasattr(weight, "ds_persist") and not weight.ds_persist:
        weight.ds_persist = True
        engine.optimizer.persistent_parameters.append(weight)


def read_states_as_data() -> None:
    """DeepSpeed unpickles its saved states whatever they say; from here on torch takes tensors, and what it has beside.

    For this process, and before a state is read.
    """
    import torch
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals([LossScaler, ZeroStageEnum, fragment_address])


@config
class DeepSpeed:
    """How training is spread over devices. Weights and optimiser state are fp32; bf16 products come by autocast."""

    stage: Free[Literal[2, 3]]
    """ZeRO: 2 spreads gradients and optimiser state, 3 also the weights."""
    offload_optimizer: Free[bool]
    """Keep the optimiser state, and do its step, in the memory of the CPU."""
    offload_weights: Free[bool]
    """Keep the weights there too; stage 3 only."""

    def __post_init__(self) -> None:
        if self.offload_weights and self.stage < 3:
            raise ValueError("offload_weights needs stage 3")

    def settings(self, precision: Precision, max_grad_norm: float | None) -> dict[str, Any]:
        """The configuration DeepSpeed is started with; accumulation over packed rows is the trainer's."""
        cpu = {"device": "cpu", "pin_memory": True}
        zero: dict[str, Any] = {
            "stage": self.stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_max_live_parameters": LIVE_WEIGHTS,
            "stage3_max_reuse_distance": LIVE_WEIGHTS,
        }
        if self.offload_optimizer:
            zero["offload_optimizer"] = cpu
        if self.offload_weights:
            zero["offload_param"] = cpu
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": max_grad_norm or 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": False},
            "torch_autocast": {
                "enabled": precision == "bfloat16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],  # weights and gradients travel in fp32
            },
        }
