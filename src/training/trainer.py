"""The trainer: `transformers.Trainer` with our loss, our schedule horizon, and checkpoints whole or not used."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)

from src import records
from src.artifact import WORK
from src.config import UserError
from src.logps import AnswerLogps, bind_forward
from src.methods.pair_logps import Method, PairLogps, Weighted
from src.model import load_policy
from src.progress import bar
from src.training.batch import PairBatch, collate
from src.training.checkpoints import CheckpointClock, StopOnSignal, latest_checkpoint
from src.training.metrics import StepMetrics, expected_first_loss
from src.training.stage import Recipe, Train

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


def train(stage: Train, reference: Path, policy: Path, out: Path) -> None:
    """Train `policy` against the rows of `reference`; leave a checkpoint folder in `out`."""
    pairs = records.read_rows(reference, records.REFERENCE)
    recipe = stage.recipe
    model = load_policy(policy, "float32", stage.devices.device)
    bind_forward(model, stage.method.alignment, stage.devices.head_chunk)
    if stage.devices.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    trainer = PairTrainer(
        model=model,
        args=_arguments(stage, len(pairs), out / WORK),
        train_dataset=_Rows(pairs),
        data_collator=lambda batch: {"batch": collate(batch, recipe.lengths)},
        callbacks=[_Bar(), CheckpointClock(stage.devices.save_minutes), stop := StopOnSignal()],
    )
    trainer.remove_callback(PrinterCallback)
    _check_step(trainer.args, recipe.batch_pairs)
    trainer.set_up(stage.method, recipe, math.ceil(len(pairs) / recipe.batch_pairs))
    _announce(stage, pairs)
    with stop:
        trainer.train(resume_from_checkpoint=latest_checkpoint(out / WORK))
    stop.raise_if_stopped()
    _save(model, recipe, policy, out)
    _write_metrics(trainer.state.log_history, out)


class PairTrainer(Trainer):
    """Trainer over pairs: the loss of a step is the mean over all its pairs, however they are cut."""

    loss_is_scaled_for_ga = True

    def set_up(self, method: Method, recipe: Recipe, steps_per_epoch: int) -> None:
        self.method, self.recipe = method, recipe
        self.horizon = steps_per_epoch * recipe.schedule_epochs
        self.step_metrics = StepMetrics(method)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """As the base class, with the number of pairs of the step as the number of items."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = torch.tensor(sum(len(b["batch"].chosen_beats_rejected) for b in batches), device=device)
        return batches, int(self.accelerator.reduce(pairs, "sum"))  # pyright: ignore[reportArgumentType]

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The data loader has moved the batch; the base class cannot rebuild named tuples."""
        return inputs

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        batch: PairBatch = inputs["batch"]
        pair_logps = pair_up(model(batch.rows), batch)
        losses = self.method.loss(pair_logps)
        if not bool(torch.isfinite(losses).all()):
            raise UserError(f"train: the loss is not finite at step {self.state.global_step}; lower train.lr")
        self.step_metrics.add(pair_logps, losses)
        assert num_items_in_batch is not None, "get_batch_samples counts the pairs"
        # Processes average their gradients, so each one's share of the mean is scaled up again.
        return losses.sum() / num_items_in_batch * self.accelerator.num_processes

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule runs over `schedule_epochs`, whatever is trained of it."""
        if self.lr_scheduler is None:
            warmup = math.ceil(self.horizon * self.recipe.warmup)
            chosen: Any = optimizer or self.optimizer
            self.lr_scheduler = get_scheduler(self.recipe.schedule, chosen, warmup, self.horizon)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {k: v for k, v in logs.items() if k != "loss"} | self.step_metrics.take(self.accelerator)
        super().log(logs, start_time)


def pair_up(logps: AnswerLogps, batch: PairBatch) -> PairLogps:
    """Rows of a batch as pairs."""
    policy_chosen, policy_rejected = logps.logp.chunk(2)
    ref_chosen, ref_rejected = batch.ref_logp.chunk(2)
    chosen_tokens, rejected_tokens = logps.tokens.chunk(2)
    chosen_log_weight, rejected_log_weight = logps.log_weight.chunk(2)
    chosen_win, rejected_win = batch.win.chunk(2)
    return PairLogps(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
        chosen_log_weight=chosen_log_weight,
        rejected_log_weight=rejected_log_weight,
        chosen_win=chosen_win,
        rejected_win=rejected_win,
        chosen_beats_rejected=batch.chosen_beats_rejected,
    )


class _Rows(Dataset):
    def __init__(self, rows: list[records.Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> records.Row:
        return self.rows[index]


def _arguments(stage: Train, pairs: int, work: Path) -> TrainingArguments:
    recipe, devices = stage.recipe, stage.devices
    per_pass = devices.pairs_per_device * devices.count
    return TrainingArguments(
        output_dir=str(work),
        use_cpu=devices.device == "cpu",
        bf16=devices.precision == "bfloat16",
        per_device_train_batch_size=devices.pairs_per_device,
        gradient_accumulation_steps=recipe.batch_pairs // per_pass,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.lr,
        optim="rmsprop" if recipe.optimizer == "rmsprop" else "adamw_torch",
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm or 0.0,
        seed=stage.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # CheckpointClock decides
        save_total_limit=2,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
    )


def _check_step(args: TrainingArguments, batch_pairs: int) -> None:
    """The key says how many pairs a step has; processes and devices must not change it."""
    step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if step != batch_pairs:
        raise UserError(
            f"train.batch_pairs: {batch_pairs}, but {args.world_size} processes with {args.n_gpu} devices each "
            f"would take {step} pairs a step; set CUDA_VISIBLE_DEVICES and hardware.devices.count"
        )


class _Bar(TrainerCallback):
    """One progress bar with the step's loss and log-ratios."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = bar("train", state.max_steps, state.global_step, "step")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss_scaled" in logs:
            shown = ("loss_scaled", "chosen_logratio", "rejected_logratio")
            self.bar.set_postfix({name: f"{logs[name]:.4g}" for name in shown}, refresh=False)
            self.bar.update(1)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


def _announce(stage: Train, pairs: list[records.Row]) -> None:
    expected = expected_first_loss(stage.method, pairs)
    print(f"train: {len(pairs)} pairs; expected loss before the first step {expected:.6g}", end="")
    print(f" (scaled: {expected / stage.method.loss_unit:.4g})", end="")
    print("; weights counted as 1" if isinstance(stage.method, Weighted) else "", flush=True)


def _save(model: PreTrainedModel, recipe: Recipe, policy: Path, out: Path) -> None:
    model.to(getattr(torch, recipe.save_dtype)).save_pretrained(out)  # pyright: ignore
    for pattern in CARRIED_OVER:
        for path in sorted(policy.glob(pattern)):
            shutil.copy2(path, out / path.name)


def _write_metrics(history: list[dict[str, float]], out: Path) -> None:
    """One line an optimiser step."""
    lines = [json.dumps(entry, sort_keys=True) + "\n" for entry in history if "loss" in entry]
    (out / "metrics.jsonl").write_text("".join(lines))
