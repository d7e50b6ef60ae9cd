"""Train: one model, gradient steps against stored reference log-probabilities.

In: reference, policy. Out: a checkpoint folder (the next policy) and `metrics.jsonl` (one line an optimiser step; but
for the figures under `speed/` the same bytes however often the run was interrupted).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from src.kernel.artifact import WORK
from src.kernel.config import Device, Free, Share, UserError, config
from src.methods.pair_logps import Method
from src.modeling.model import AttentionKind, Precision
from src.training.deepspeed import DeepSpeed
from src.training.lengths import Lengths
from src.training.lora import Lora


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
    lora: Lora | None
    """None: all weights are trained."""
    save_dtype: Precision
    """Of the checkpoint handed to the next iteration; training itself keeps fp32 weights."""

    def __post_init__(self) -> None:
        if self.schedule_epochs < self.epochs:
            raise ValueError(f"schedule_epochs {self.schedule_epochs} is shorter than epochs {self.epochs}")

    def check_pairs(self, pairs: int, most: str = "") -> None:
        """Raises UserError where so many are one step. `most`: put before the number, where there may be fewer."""
        if pairs <= self.batch_pairs and self.epochs == 1 and self.warmup > 0:
            raise UserError(
                f"train: {most}{pairs} pairs are one step, and a warm-up begins at rate 0: nothing would be learned; "
                "lower train.batch_pairs, bring more prompts, or set train.warmup=0"
            )


@config
class Devices:
    """The machine's part of training: how a step is cut into devices and rows moves rounding only."""

    device: Free[Device]
    count: Free[PositiveInt]
    """Devices that train, over all nodes."""
    nodes: Free[PositiveInt]
    """More than one: inside a SLURM allocation of as many."""
    precision: Precision
    """Of the matrix products; weights and optimiser state are fp32 whatever it says."""
    row_tokens: Free[PositiveInt]
    """Tokens of a packed row: what one forward and backward pass takes. A longer pair has a row of its own."""
    head_chunk: Free[PositiveInt]
    """Answer tokens that meet the LM head at a time."""
    attention: Free[AttentionKind]
    """segments: group by group. flex: one FlexAttention kernel a row."""
    activation_checkpointing: Free[bool]
    deepspeed: Free[DeepSpeed | None]
    """None: one device, in this process. Else `accelerate launch` starts `count` processes."""
    memory_gb: Free[PositiveFloat | None]
    """Of one device; None: that of this machine."""
    peak_tflops: Free[PositiveFloat | None]
    """Of one device at `precision`, for the utilisation; None leaves it out."""
    save_minutes: Free[Annotated[float, Field(gt=0)]]
    """Time between checkpoints: what a kill can cost."""

    @property
    def layout(self) -> str:
        """How checkpoints are spread: one layout cannot go on from another's."""
        return f"{self.count} processes under ZeRO-{self.deepspeed.stage}" if self.deepspeed else "one process"

    def __post_init__(self) -> None:
        if self.device == "cpu" and self.attention == "flex":
            raise ValueError("attention flex: FlexAttention has no backward pass on CPUs; choose segments")
        if self.count > 1 and self.deepspeed is None:
            raise ValueError(
                f"count {self.count}: several devices need +deepspeed@hardware.devices.deepspeed=zero2 or zero3"
            )
        if self.count % self.nodes:
            raise ValueError(f"count {self.count} is no multiple of nodes {self.nodes}")


@config
class Train:
    kind: ClassVar[str] = "policy"
    version: ClassVar[int] = 2
    resumable: ClassVar[bool] = True

    method: Method
    recipe: Recipe
    devices: Devices
    seed: int

    def __call__(self, *inputs: Path, out: Path) -> None:
        from src.training.checkpoints import check_layout
        from src.training.memory import check_memory

        reference, policy = inputs
        check_memory(policy, self.recipe, self.devices)
        check_layout(out / WORK, self.devices.layout)
        if self.devices.deepspeed is None:
            from src.training.trainer import train

            train(self, reference, policy, out)
        else:
            from src.training.launch import train_in_processes

            train_in_processes(self, reference, policy, out)
