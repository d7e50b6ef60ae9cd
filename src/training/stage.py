"""Train: one model, one pass of gradient steps against stored reference log-probabilities.

In: reference, policy. Out: a checkpoint folder (the next policy) and `metrics.jsonl` (one line an optimiser step, the
same bytes however often the run was interrupted).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from src.config import Device, Free, Share, config
from src.methods.pair_logps import Method
from src.model import Precision
from src.training.lengths import Lengths


@config
class Recipe:
    """The published part of training: everything here changes the result."""

    lr: PositiveFloat
    batch_pairs: PositiveInt
    """Pairs in one optimiser step, over all devices."""
    epochs: PositiveInt
    """Passes over the pairs."""
    schedule_epochs: PositiveInt
    """Horizon of the learning-rate schedule, in passes; at least `epochs`."""
    schedule: Literal["linear", "cosine"]
    warmup: Share
    """Share of the horizon spent warming up."""
    optimizer: Literal["rmsprop", "adamw"]
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat | None
    """None: no clipping."""
    lengths: Lengths
    save_dtype: Precision
    """Of the checkpoint handed to the next iteration; training itself keeps fp32 weights."""

    def __post_init__(self) -> None:
        if self.schedule_epochs < self.epochs:
            raise ValueError(f"schedule_epochs {self.schedule_epochs} is shorter than epochs {self.epochs}")


@config
class Devices:
    """The machine's part of training."""

    device: Free[Device]
    count: Free[PositiveInt]
    precision: Precision
    """Of the matrix products; weights and optimiser state are fp32 whatever it says."""
    pairs_per_device: Free[PositiveInt]
    """Pairs in one forward and backward pass."""
    head_chunk: Free[PositiveInt]
    """Answer tokens that meet the LM head at a time."""
    activation_checkpointing: Free[bool]
    save_minutes: Free[Annotated[float, Field(gt=0)]]
    """Time between checkpoints: what a kill can cost."""


@config
class Train:
    kind: ClassVar[str] = "policy"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    method: Method
    recipe: Recipe
    devices: Devices
    seed: int

    def __call__(self, *inputs: Path, out: Path) -> None:
        from src.training.trainer import train

        reference, policy = inputs
        train(self, reference, policy, out)
