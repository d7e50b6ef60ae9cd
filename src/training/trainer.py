"""The trainer: `transformers.Trainer` over packed rows, with our loss, schedule horizon and metrics."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from src.kernel.artifact import WORK
from src.kernel.config import Stopped, UserError
from src.kernel.disk import write_atomic
from src.kernel.processes import bar, keep_memory
from src.kernel.rows import REFERENCE, ROWS, SPEED, Row, read_rows, write_rows
from src.methods.method import Method, Weighted, alignment_of
from src.modeling.logps import bind_forward
from src.modeling.packing import row_multiple
from src.modeling.policy import load_policy, load_tokenizer
from src.training.batch import Collator, PairBatch, Step, StepSampler, pair_up
from src.training.checkpoints import Checkpointing, highest, latest_checkpoint, read_as_data, save_policy
from src.training.metrics import AT_START, LATER, WATCHED, StepMetrics, check_start, expected_first_loss, means_of
from src.training.recipe import Devices, Recipe

LIVE = "metrics.jsonl"
"""The file in the working folder that has the rows so far."""
ASIDE = "not_finite"
"""The folder, in the working folder of an unfinished artifact, of the pairs of a step without a finite number."""
SEEN = ("policy_chosen_logp", "policy_rejected_logp", "chosen_tokens", "rejected_tokens", "loss")
"""Columns of what a process sees of a pair in a step."""


def train(
    method: Method, recipe: Recipe, devices: Devices, seed: int, reference: Path, policy: Path, out: Path
) -> None:
    """Train `policy` against the rows of `reference` and leave a checkpoint folder in `out`. Every process calls it.

    Raises UserError for what is not finite (the pairs of the step are kept aside), Fault where the reference is not of
    the policy, Stopped after a signal.
    """
    pairs, work = read_rows(reference, REFERENCE), out / WORK
    arguments = arguments_of(recipe, devices, seed, work)  # before the model: ZeRO-3 spreads it while it is loaded
    model: Any = load_policy(policy, "float32", devices.device)
    bind_forward(model, alignment_of(method), devices.head_chunk, devices.attention)
    if devices.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if recipe.lora:
        set_seed(seed)  # its additions start at random
        model = recipe.lora.attach(model)
    saving, progress = Checkpointing(work, devices.save_minutes, devices.layout), _Progress(work)
    rows: Any = pairs
    trainer = PairTrainer(model=model, args=arguments, train_dataset=rows, callbacks=[progress, saving])
    trainer.remove_callback(PrinterCallback)
    trainer.set_up(method, recipe, devices, (reference, policy))
    first, checkpoint = trainer.is_world_process_zero(), None
    if first:
        expected = expected_first_loss(method, pairs)
        weights = "; weights counted as 1" if isinstance(method, Weighted) else ""
        loss = f"{expected:.6g} (scaled: {expected / method.loss_unit:.4g}){weights}"
        print(f"train: {len(pairs)} pairs; expected loss before the first step {loss}", flush=True)
        checkpoint = latest_checkpoint(work)
    (checkpoint,) = broadcast_object_list([checkpoint])
    with closing(progress), read_as_data(checkpoint, devices.deepspeed is not None):
        trainer.train(resume_from_checkpoint=checkpoint)
    if saving.stopped_by:
        raise Stopped(saving.stopped_by)
    kept = save_policy(trainer, recipe, policy, out)
    if first:
        if kept is not None:
            last = next(entry for entry in reversed(trainer.state.log_history) if "loss" in entry)
            last["saved_cosine"] = kept
        write_atomic(out / "metrics.jsonl", _lines(trainer.state.log_history))


class PairTrainer(Trainer):
    """Trainer over the pairs of optimiser steps: the loss of a step is the mean over its pairs, however they are cut.

    The data loader brings whole steps, so that each process knows what the others do; `training_step` walks its rows.
    """

    def set_up(self, method: Method, recipe: Recipe, devices: Devices, inputs: Sequence[Path] = ()) -> None:
        """Take what a training needs beyond its arguments.

        `inputs` are the artifact with the rows, which is compared with the policy before the first step, and the policy
        that the training starts from.
        """
        if devices.device == "cpu":
            keep_memory()
        torch.set_autocast_cache_enabled(False)  # a weight meets one product a pass; kept, all bf16 copies pile up
        self.method, self.recipe, self.devices = method, recipe, devices
        self.inputs = inputs
        self.rows: Any = self.train_dataset
        recipe.check_pairs(len(self.rows))
        self.horizon = math.ceil(len(self.rows) / recipe.batch_pairs) * recipe.schedule_epochs
        self.step_metrics = StepMetrics(method)

    def get_train_dataloader(self) -> DataLoader:
        """Load whole steps, the same in every process. Their order depends on the seed and the epoch alone."""
        collator = Collator(
            lengths=self.recipe.lengths,
            row_tokens=self.devices.row_tokens,
            rank=self.args.process_index,
            processes=self.args.world_size,
            multiple=row_multiple(self.devices.attention, self.devices.row_tokens),
        )
        order = SeedableRandomSampler(self.rows, data_seed=self.args.seed)
        steps = StepSampler(order, self.recipe.batch_pairs, drop_last=False)
        loader: Any = DataLoader(self.rows, batch_sampler=steps, collate_fn=collator)
        loader.set_epoch = steps.set_epoch  # for Trainer, when it resumes at the beginning of an epoch
        return loader

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """Take one step from the loader."""
        self.begun = time.monotonic()
        self.step: Step = next(epoch_iterator)
        return [self.step], len(self.step.pairs)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Go forward and backward over the rows; processes exchange gradients in the last one."""
        step: Step = inputs
        if self.is_deepspeed_enabled:
            keep_head_whole(model)
        model.train()
        total, self.seen = torch.zeros((), device=self.args.device), list[Tensor]()
        for number, batch in enumerate(step.batches, start=1):
            last = number == len(step.batches)
            self.accelerator.gradient_state._set_sync_gradients(last)
            with self.compute_loss_context_manager():
                loss = self._row_loss(model, batch.to(self.args.device), len(step.pairs))
            total += loss.detach()
            if last:  # before the weights move
                self.sums = self.step_metrics.end()
                for name in (*WATCHED, *self.sums):
                    if not math.isfinite(self.sums[name]):
                        self._refuse(name)
                if self.inputs and self.state.global_step == 0:
                    answers = [
                        (row["prompt_id"], row[f"policy_{side}_logp"] - row[f"ref_{side}_logp"], row[f"{side}_tokens"])
                        for row in self._found()
                        for side in ("chosen", "rejected")
                    ]
                    check_start(answers, self.devices.precision, self.inputs[0] / ROWS)
            self.accelerator.backward(loss)
        return total

    def _row_loss(self, model: Any, batch: PairBatch, pairs_in_step: int) -> Tensor:
        """Return what a packed row adds to the loss of the step: the sum over its pairs / the pairs of the step."""
        pair_logps = pair_up(model(batch.packed), batch)
        losses = self.method.loss(pair_logps)
        self.step_metrics.add(pair_logps, losses, batch.counted)
        self.seen.append(torch.stack([*pair_logps[:2], *pair_logps[4:6], losses, batch.counted], 1).detach())
        # Processes average their gradients, so each one's share of the mean is scaled up again.
        return (losses * batch.counted).sum() / pairs_in_step * self.args.world_size

    def _found(self) -> list[Row]:
        """Return the pairs of the step with what all processes found them to be."""
        mine = [values for *values, counted in torch.cat(self.seen).tolist() if counted]
        found = gather_object(list(zip(self.step.places, mine, strict=True)))
        return [self.step.pairs[i] | dict(zip(SEEN, values, strict=True)) for i, values in sorted(found)]

    def _refuse(self, what: str) -> NoReturn:
        """Put the pairs of the step aside, so that one can look at them and train with them, and raise UserError."""
        aside, found, step = Path(self.args.output_dir or "") / ASIDE, self._found(), self.state.global_step
        if self.is_world_process_zero():
            aside.mkdir(parents=True, exist_ok=True)
            decode: Any = load_tokenizer(self.inputs[1]).decode if self.inputs else str
            for row in found:
                names = ("prompt", "chosen", "rejected")
                row |= {"step": step} | {f"{name}_text": decode(row[f"{name}_token_ids"]) for name in names}
            write_rows(aside, found, None)
        remedy = WATCHED.get(what) or (LATER if step else AT_START)
        raise UserError(f"train: the {what} is not finite at step {step}; its pairs are in {aside / ROWS}; {remedy}")

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = float(super()._get_grad_norm(model, grad_norm))  # pyright: ignore[reportArgumentType]
        if highest(not 0 <= norm < math.inf):  # DeepSpeed's versions say inf or -1 for a norm that is not finite
            self._refuse("gradient")
        return norm

    def create_optimizer(self, model: Any = None) -> Any:
        """Avoid the temporary copies of all weights that the base class's multi-tensor form makes on GPUs."""
        optimizer = super().create_optimizer(model)
        for group in optimizer.param_groups:
            group["foreach"] = False
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Run the schedule over `schedule_epochs`, even if training stops earlier."""
        self.args.warmup_steps = math.ceil(self.horizon * self.recipe.warmup)
        return super().create_scheduler(self.horizon, optimizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {name: value for name, value in logs.items() if name != "loss"} | means_of(self.sums) | self._work()
        super().log(logs, start_time)

    def _work(self) -> dict[str, float]:
        """Return what was computed in the step, and how fast; what begins with SPEED depends on the machine."""
        seconds, tokens, device = time.monotonic() - self.begun, self.step.tokens, self.args.device
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(device)
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        speed = {"seconds": seconds, "tokens_per_s": tokens / seconds, "memory_gb": highest(memory) / 1e9}
        unshared = tokens + sum(len(group.prompt) for group in self.step.groups)
        work = {"tokens": tokens, "tokens_saved": 1 - tokens / unshared}
        return work | {SPEED + name: round(value, 4) for name, value in speed.items()}

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the base class counts padded batches

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights of a checkpoint, unless DeepSpeed's own files hold them already."""
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)


def keep_head_whole(engine: Any) -> None:
    """Under ZeRO-3, have the LM head gathered once per step: it stays whole from its first row to its last."""
    weight = engine.module.get_output_embeddings().weight
    if hasattr(weight, "ds_persist") and not weight.ds_persist:
        weight.ds_persist = True
        engine.optimizer.persistent_parameters.append(weight)


def arguments_of(recipe: Recipe, devices: Devices, seed: int, work: Path) -> TrainingArguments:
    zero = devices.deepspeed
    arguments = TrainingArguments(
        output_dir=str(work),
        use_cpu=devices.device == "cpu",
        bf16=devices.precision == "bfloat16" and zero is None,
        deepspeed=zero.settings(devices.precision, recipe.max_grad_norm) if zero else None,
        per_device_train_batch_size=1,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.lr,
        lr_scheduler_type=recipe.schedule,
        optim="rmsprop" if recipe.optimizer == "rmsprop" else "adamw_torch",
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm or 0.0,
        seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # Checkpointing decides
        save_total_limit=2,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
    )
    if zero is None and arguments.n_gpu > 1:
        arguments._n_gpu = 1  # transformers would spread the model over those that stand idle, too
    return arguments


class _Progress(TrainerCallback):
    """Shows a progress bar with the step's loss and log-ratios, and writes the rows so far to a file."""

    def __init__(self, work: Path) -> None:
        self.file, self.bar = work / LIVE, None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = bar("train", state.max_steps, state.global_step, "step") if state.is_world_process_zero else None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self.bar and logs and "loss_scaled" in logs:
            names = ("loss_scaled", "chosen_logratio", "rejected_logratio")
            self.bar.set_postfix({name: f"{logs[name]:.4g}" for name in names}, refresh=False)
            self.bar.update(1)
            write_atomic(self.file, _lines(state.log_history))

    def close(self) -> None:
        """Close the bar, whatever ends the training, so that an error stands on a line of its own."""
        if self.bar:
            self.bar.close()


def _lines(history: list[dict[str, float]]) -> bytes:
    """Return one JSON line per optimiser step."""
    return "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in history if "loss" in entry).encode()
