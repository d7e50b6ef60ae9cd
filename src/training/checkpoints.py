"""Checkpoints of training: when to save, which one is whole and may be read, and the policy at the end."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from src.kernel.config import Fault, UserError
from src.kernel.disk import sync, write_atomic
from src.kernel.record import sha256
from src.kernel.rows import NOT_FINITE
from src.modeling.checkpoints import share_weights
from src.modeling.policy import load_policy
from src.training.recipe import Recipe

WHOLE = "whole"
"""File written last into a checkpoint: how the processes were arranged, and the sha256 of all other files."""
STOP = "stop"
"""File in the working folder that asks training to stop; it holds the number of a signal."""
CARRIED_OVER = ("tokenizer*", "*tokens*.json", "*.jinja", "*.model", "vocab.*", "merges.txt")
"""Files of the starting policy that training does not touch."""


class Checkpointing(TrainerCallback):
    """Saves every `minutes`. Where the file STOP asks for it, training finishes the step, saves and stops."""

    def __init__(self, work: Path, minutes: float, layout: str) -> None:
        """`layout` says how the processes are arranged."""
        self.stop, self.seconds, self.layout = work / STOP, minutes * 60, layout
        self.saved = time.monotonic()
        self.stopped_by = 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        asked = int(self.stop.read_text()) if state.is_world_process_zero and self.stop.exists() else 0
        self.stopped_by = highest(asked)
        control.should_training_stop = control.should_training_stop or self.stopped_by > 0
        due = highest(time.monotonic() - self.saved >= self.seconds)
        control.should_save = control.should_save or self.stopped_by > 0 or due > 0

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.saved = time.monotonic()
        folder, processes = Path(args.output_dir or "") / f"checkpoint-{state.global_step}", PartialState()
        processes.wait_for_everyone()  # all have written
        if args.local_process_index == 0:
            os.sync()
        processes.wait_for_everyone()  # on every node
        if state.is_world_process_zero:
            share_weights(folder, "trainer_state.json")  # whoever shares the store may go on from it
            mark_whole(folder, self.layout)


def highest(value: int) -> int:
    """Return the largest `value` of all processes."""
    return int(gather(torch.tensor([value], device=PartialState().device)).max())  # pyright: ignore


# Which checkpoint is whole ------------------------------------------------------------------------------------------


def mark_whole(checkpoint: Path, layout: str) -> None:
    """Mark a checkpoint as whole, once the files of all processes are on disk."""
    marker = {"layout": layout, "files": digests(checkpoint)}
    write_atomic(checkpoint / WHOLE, json.dumps(marker).encode())
    sync(checkpoint)


def digests(checkpoint: Path) -> dict[str, str]:
    """Return the sha256 of every file of a checkpoint but the marker."""
    paths = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != WHOLE]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip((str(path.relative_to(checkpoint)) for path in paths), pool.map(sha256, paths), strict=True))


def _marker(checkpoint: Path) -> dict[str, Any]:
    """Return what the marker says; nothing where it is missing or damaged."""
    try:
        return dict(json.loads((checkpoint / WHOLE).read_bytes()))
    except (FileNotFoundError, RecursionError, TypeError, ValueError):
        return {}


def check_layout(work: Path, layout: str) -> None:
    """Raise UserError where a checkpoint is of processes arranged in another way, which cannot go on from it."""
    for folder in work.glob("checkpoint-*"):
        if (saved := _marker(folder).get("layout", layout)) != layout:
            remedy = f"go on as it was begun, or delete {work} to start this training afresh"
            raise UserError(f"hardware.devices: {folder} was saved by {saved}, not by {layout}; {remedy}")


def latest_checkpoint(work: Path) -> str | None:
    """Return the newest whole checkpoint. Removes torn and damaged ones, so one process alone may ask."""
    for folder in sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if (folder / WHOLE).exists():
            if _marker(folder).get("files") == digests(folder):
                return str(folder)
            print(f"train: {folder} is damaged; going on from before it", file=sys.stderr)
        shutil.rmtree(folder)
    return None


@contextmanager
def read_as_data(checkpoint: str | None, deepspeed: bool) -> Iterator[None]:
    """Let torch read saved states as tensors and numbers only. Raises Fault for one that would run code."""
    if deepspeed:  # it unpickles its saved states whatever they say, unless torch is told otherwise
        from deepspeed.runtime.fp16.loss_scaler import LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        torch.serialization.add_safe_globals([LossScaler, ZeroStageEnum, fragment_address])
    try:
        yield
    except UnpicklingError as error:  # torch advises to read it anyway, so its words are not shown
        remedy = "find out who wrote it, or delete that folder: the same command then resumes from before it"
        raise Fault(f"{checkpoint}: a state in it is no plain data, so it was not read; {remedy}") from error


# The policy at the end ----------------------------------------------------------------------------------------------


def save_policy(trainer: Trainer, recipe: Recipe, policy: Path, out: Path) -> float | None:
    """Write the trained weights in `recipe.save_dtype`, and the tokenizer of `policy`, the start of this training.

    Every process calls it: DeepSpeed gathers its fp32 copies one by one. The first process writes, and returns the
    cosine between the update as trained and as saved: below 1, rounding has taken a part of it. None under LoRA, in
    other processes, and where no weight has moved.
    """
    first, trained = trainer.is_world_process_zero(), {}
    source: Any = trainer.model
    for name, parameter in source.named_parameters():
        if not parameter.requires_grad:
            continue
        value = parameter.data
        if trainer.is_deepspeed_enabled:
            from deepspeed.utils import safe_get_full_fp32_param

            value = safe_get_full_fp32_param(parameter)
        if first:
            assert value is not None, f"DeepSpeed has no fp32 copy of {name}"
            trained[name] = value.to("cpu", torch.float32, copy=True)
    if not first:
        return None
    if bad := [name for name, value in trained.items() if not value.isfinite().all()]:
        raise UserError(f"train: {bad[0]} is {NOT_FINITE} after the last step, so no policy was stored; lower train.lr")
    unset_hf_deepspeed_config()  # or loading would wait for the other processes
    model: Any = load_policy(policy, "float32", "cpu")
    if recipe.lora:
        model = recipe.lora.attach(model)
    weights, save_dtype = dict(model.named_parameters()), getattr(torch, recipe.save_dtype)
    sums = torch.zeros(3, dtype=torch.float64)
    for name, value in trained.items():
        update, saved = (each - weights[name].data for each in (value, value.to(save_dtype).float()))
        products = (update * saved, update * update, saved * saved)
        sums += torch.stack([each.sum(dtype=torch.float64) for each in products])
        weights[name].data.copy_(value)
    if recipe.lora:
        model = model.merge_and_unload()
    model.to(save_dtype).save_pretrained(out)
    share_weights(out)
    for pattern in CARRIED_OVER:
        for path in policy.glob(pattern):
            shutil.copy2(path, out / path.name)
    product, *lengths = sums.tolist()
    return None if recipe.lora or not all(lengths) else product / math.sqrt(lengths[0] * lengths[1])
