"""The settings of training: the published recipe, and how a machine carries it out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from src.kernel.config import Device, Free, Share, UserError, config
from src.kernel.rows import Row
from src.modeling.packing import Group, Ids
from src.modeling.policy import AttentionKind, Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIVE_WEIGHTS = 500_000_000
"""ZeRO-3 holds at most this many gathered weights at a time, and one matrix more where a matrix is larger."""
BUCKET = 50_000_000
"""Gradients exchanged at a time."""


@config
class Lengths:
    """The limits of prompts and answers in training, in tokens."""

    max_prompt: PositiveInt
    """A longer prompt keeps its last tokens."""
    max_total: PositiveInt
    """Prompt and answer together; a longer answer keeps its first tokens."""
    truncation: Literal["separate", "joint"]
    """separate: prompts are cut to `max_prompt`, and each answer has the room that its prompt leaves.
    joint (the public code): nothing is cut of a pair whose prompt and longer answer fit; else the prompt is, and if
    that is not enough, both answers to `max_total - max_prompt`."""

    def __post_init__(self) -> None:
        if self.max_prompt >= self.max_total:
            raise ValueError(f"max_prompt {self.max_prompt} leaves no room for an answer in max_total {self.max_total}")

    def fit(self, prompt: Ids, chosen: Ids, rejected: Ids) -> tuple[Ids, Ids, Ids]:
        """Cut the token ids of a pair to the limits."""
        longest = max(len(chosen), len(rejected))
        if self.truncation == "separate" or len(prompt) + longest > self.max_total:
            prompt = prompt[-self.max_prompt :]
        if self.truncation == "separate":
            room = self.max_total - len(prompt)
        else:
            room = longest if len(prompt) + longest <= self.max_total else self.max_total - self.max_prompt
        return prompt, chosen[:room], rejected[:room]

    def group(self, pair: Row) -> Group:
        """Return the prompt and the two answers of a row of PAIRS, cut to the limits."""
        names = ("prompt_token_ids", "chosen_token_ids", "rejected_token_ids")
        prompt, *answers = self.fit(*(pair[name] for name in names))
        return Group(prompt, answers)


@config
class Lora:
    """arXiv:2106.09685, on every linear layer but the LM head; at the start it changes nothing."""

    rank: PositiveInt
    alpha: PositiveFloat
    """The additions are scaled by alpha / rank."""

    def attach(self, model: PreTrainedModel) -> Any:
        """Add fresh trainable additions to `model` and freeze its own weights."""
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=0.0, target_modules="all-linear")  # pyright: ignore[reportArgumentType]
        settings.task_type = None  # the generic wrapper hands our own arguments through
        return get_peft_model(model, settings)


@config
class DeepSpeed:
    """Spreads training over devices. Weights and optimiser state are fp32; bf16 products come by autocast."""

    stage: Free[Literal[2, 3]]
    """ZeRO: 2 spreads gradients and optimiser state, 3 also the weights."""
    offload: Free[bool]
    """Keep weights and optimiser state, and do the optimiser's step, in the memory of the CPU; stage 3 only."""

    def __post_init__(self) -> None:
        if self.offload and self.stage < 3:
            raise ValueError("offload needs stage 3")

    def settings(self, precision: Precision, max_grad_norm: float | None) -> dict[str, Any]:
        """Return DeepSpeed's own configuration; accumulation over packed rows is the trainer's."""
        cpu = {"device": "cpu", "pin_memory": True}
        zero = {"stage": self.stage, "overlap_comm": False, "contiguous_gradients": True}
        zero |= dict.fromkeys(("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"), BUCKET)
        zero |= dict.fromkeys(("stage3_max_live_parameters", "stage3_max_reuse_distance"), LIVE_WEIGHTS)
        autocast = {"enabled": precision == "bfloat16", "dtype": "bfloat16"}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": max_grad_norm or 0.0,
            "zero_optimization": zero | ({"offload_optimizer": cpu, "offload_param": cpu} if self.offload else {}),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": False},
            "torch_autocast": autocast | {"lower_precision_safe_modules": []},  # weights and gradients travel in fp32
        }


@config
class Recipe:
    """The published part of training: everything here changes the result."""

    lr: Annotated[float, Field(gt=0, le=1)]
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
    """The norm at which gradients are clipped; None: no clipping."""
    lengths: Lengths
    lora: Lora | None
    """None: all weights are trained."""
    save_dtype: Precision
    """The type of the weights handed to the next iteration; training itself keeps fp32."""

    def __post_init__(self) -> None:
        if self.schedule_epochs < self.epochs:
            raise ValueError(f"schedule_epochs {self.schedule_epochs} is shorter than epochs {self.epochs}")

    def check_pairs(self, pairs: int, planned: bool = False) -> None:
        """Raise UserError where all pairs are one step at rate 0. `planned`: also where no batch can be full."""
        if planned and pairs < self.batch_pairs:
            what = f"{self.batch_pairs} is more than the {pairs} pairs there can be"
            raise UserError(f"train.batch_pairs: {what}; lower it, or bring more prompts")
        if pairs <= self.batch_pairs and self.epochs == 1 and self.warmup > 0:
            what = f"all {pairs} pairs are one step, and a warm-up begins at rate 0: nothing would be learned"
            raise UserError(f"train.batch_pairs: {what}; lower it, bring more prompts, or set train.warmup=0")


@config
class Devices:
    """The machine's part of training: how a step is cut into devices and rows moves rounding only."""

    device: Free[Device]
    count: Free[PositiveInt]
    """Devices that train, over all nodes."""
    nodes: Free[PositiveInt]
    """Machines; more than one needs a SLURM allocation of that many."""
    precision: Precision
    """The type of matrix products; weights and optimiser state are fp32 whatever it says."""
    row_tokens: Free[PositiveInt]
    """Tokens of a packed row: what one forward and backward pass takes. A longer pair has a row of its own."""
    head_chunk: Free[PositiveInt]
    """Answer tokens that meet the LM head at a time."""
    attention: Free[AttentionKind]
    """segments: group by group. flex: one FlexAttention kernel per row."""
    activation_checkpointing: Free[bool]
    deepspeed: Free[DeepSpeed | None]
    """None: one device, in this process. Else `accelerate launch` starts `count` processes."""
    memory_gb: Free[PositiveFloat | None]
    """The memory of one device, GB; None: that of this machine."""
    peak_tflops: Free[PositiveFloat | None]
    """The peak of one device at `precision`, for forecasts."""
    save_minutes: Free[PositiveFloat]
    """Minutes between checkpoints: what a kill can cost."""

    @property
    def layout(self) -> str:
        """The way that checkpoints are spread over processes; one layout cannot go on from another's."""
        return f"{self.count} processes under ZeRO-{self.deepspeed.stage}" if self.deepspeed else "one process"

    def __post_init__(self) -> None:
        if self.device == "cpu" and self.attention == "flex":
            raise ValueError("attention flex: FlexAttention has no backward pass on CPUs; choose segments")
        if self.count > 1 and self.deepspeed is None:
            need = "several devices need +deepspeed@hardware.devices.deepspeed=zero2 or zero3"
            raise ValueError(f"count {self.count}: {need}")
        if self.count % self.nodes:
            raise ValueError(f"count {self.count} must be a multiple of nodes {self.nodes}")
