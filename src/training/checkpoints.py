"""When to checkpoint, which checkpoint is whole, and how a signal ends training without losing a step."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from src.kernel.config import Fault, Stopped, UserError
from src.kernel.disk import sync, write_atomic
from src.kernel.record import sha256
from src.modeling.checkpoints import share_weights
from src.modeling.policy import load_policy
from src.training.recipe import Recipe

WHOLE = "whole"
"""Marker inside a checkpoint folder, written last: how the processes were arranged, and the digest of their SUMS."""
SUMS = "sums"
"""Begins the names of files inside it with the sha256 of the others, one of each process."""

STOP = "stop"
"""File that asks training to stop."""


class CheckpointClock(TrainerCallback):
    """Saves every `minutes`, and marks a checkpoint whole once the files of all processes are on disk."""

    def __init__(self, minutes: float, layout: str) -> None:
        """`layout` says how the processes are arranged; it is left in the marker."""
        self.seconds, self.layout = minutes * 60, layout
        self.last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if any_process(time.monotonic() - self.last >= self.seconds):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.last = time.monotonic()
        folder = Path(args.output_dir or "") / f"checkpoint-{state.global_step}"
        any_process(False)  # all have written
        note_sums(folder, args.process_index, args.world_size)
        if args.local_process_index == 0:
            os.sync()
        any_process(False)  # on every node
        if state.is_world_process_zero:
            share_weights(folder, "trainer_state.json")  # whoever shares the store may go on from it
            mark_whole(folder, self.layout)


class StopOnSignal(TrainerCallback):
    """On SIGTERM or SIGUSR1: finish the step, save, stop. A context manager that puts the old handlers back.

    A signal reaches one process; the file `STOP` in the working folder, with the signal's number, does the same.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, work: Path) -> None:
        self.file = work / STOP
        self.received = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        self._old = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero and self.file.exists():
            self.received = int(self.file.read_text())
        self.received = highest(self.received)
        if self.received:
            control.should_save = control.should_training_stop = True

    def raise_if_stopped(self) -> None:
        if self.received:
            raise Stopped(self.received)


def highest(value: int) -> int:
    """Returns the largest `value` of all processes."""
    if not torch.distributed.is_initialized():
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    shared = torch.tensor(value, device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return int(shared)


def any_process(flag: bool) -> bool:
    """Tells whether the flag is set in any process; waits for all of them."""
    return bool(highest(int(flag)))


def check_layout(work: Path, layout: str) -> None:
    """Refuses to go on from checkpoints of processes arranged in another way. Raises UserError with what to do."""
    for folder in work.glob("checkpoint-*"):
        if (found := _marker(folder).get("layout", layout)) != layout:
            raise UserError(
                f"hardware.devices: {folder} was saved by {found}, not by {layout}; "
                f"go on as it was begun, or delete {work} to start this training afresh"
            )


def note_sums(checkpoint: Path, process: int, processes: int) -> None:
    """Hashes this process's share of the files; the shares together are all of them."""
    names = sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())
    shares = [name for name in names if not name.startswith(SUMS)][process::processes]
    (checkpoint / f"{SUMS}-{process}.json").write_text(json.dumps({name: sha256(checkpoint / name) for name in shares}))


def mark_whole(checkpoint: Path, layout: str) -> None:
    """Marks a checkpoint as whole, once all files and sums of all processes are on disk."""
    write_atomic(checkpoint / WHOLE, json.dumps({"layout": layout, "sums": _digest(checkpoint)}).encode())
    sync(checkpoint)


def damaged(checkpoint: Path) -> list[str]:
    """Lists the files of a marked checkpoint that are not as they were saved."""
    if _marker(checkpoint).get("sums") != _digest(checkpoint):
        return [f"{WHOLE} or {SUMS}"]
    expected: dict[str, str] = {}
    for told in checkpoint.glob(f"{SUMS}-*.json"):
        expected |= json.loads(told.read_text())
    files = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    there = [name for name in expected if name in files]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(there, pool.map(lambda name: sha256(checkpoint / name), there), strict=True))
    return sorted(name for name, whole in expected.items() if found.get(name) != whole)


def _digest(checkpoint: Path) -> str:
    """Hashes the sums of all processes, so that none can be missing."""
    told = sorted(checkpoint.glob(f"{SUMS}-*.json"))
    return hashlib.sha256("".join(f"{path.name} {sha256(path)}\n" for path in told).encode()).hexdigest()


def _marker(checkpoint: Path) -> dict[str, Any]:
    """Reads WHOLE; nothing where it is missing or cannot be read."""
    try:
        found = json.loads((checkpoint / WHOLE).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def latest_checkpoint(work: Path) -> str | None:
    """Finds the newest whole checkpoint. Removes torn and damaged ones, so one process alone may look."""
    for folder in sorted(work.glob("checkpoint-*"), key=_step, reverse=True):
        if (folder / WHOLE).exists():
            names = damaged(folder)
            if not names:
                return str(folder)
            print(f"train: {folder} is damaged ({', '.join(names)}); going on from before it", file=sys.stderr)
        shutil.rmtree(folder)
    return None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


@contextmanager
def read_as_data(checkpoint: str | None, deepspeed: bool) -> Iterator[None]:
    """Lets torch read saved states as tensors and numbers only. Raises Fault for one that would run code."""
    if deepspeed:  # it unpickles its saved states whatever they say, unless torch is told otherwise
        from deepspeed.runtime.fp16.loss_scaler import LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        torch.serialization.add_safe_globals([LossScaler, ZeroStageEnum, fragment_address])
    try:
        yield
    except UnpicklingError as error:
        refused = re.search(
            r"GLOBAL [\w.]+|Unsupported \w+ \S+", str(error)
        )  # without torch's advice to read it anyway
        raise Fault(
            f"{checkpoint}: a state in it is no plain data ({refused[0] if refused else 'UnpicklingError'}), so it was "
            "not read; find out who wrote it, or delete that folder: the same command then goes on from before it"
        ) from error


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
    """Writes weights in `recipe.save_dtype` and what belongs to them. Every process calls it, the first one writes."""
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
    """Gathers the trained parameters by name, fp32, on the CPU of the first process; returns none in the others.

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
