"""When to checkpoint, which checkpoint is whole, and how a signal ends training without losing a step."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from src.config import Stopped, UserError

WHOLE = "whole"
"""Marker inside a checkpoint folder, written after everything else."""

STOP = "stop"
"""File that asks training to stop."""


class CheckpointClock(TrainerCallback):
    """Saves every `minutes`, and marks a checkpoint whole once the files of all processes are on disk."""

    def __init__(self, minutes: float, layout: str) -> None:
        """`layout`: how the processes are arranged, left in the marker."""
        self.seconds, self.layout = minutes * 60, layout
        self.last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if any_process(time.monotonic() - self.last >= self.seconds):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.last = time.monotonic()
        any_process(False)  # all have written
        if args.local_process_index == 0:
            os.sync()
        any_process(False)  # on every node
        if state.is_world_process_zero and args.output_dir:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).write_text(self.layout)


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
    """Over all processes."""
    if not torch.distributed.is_initialized():
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    shared = torch.tensor(value, device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return int(shared)


def any_process(flag: bool) -> bool:
    """True where it is in any process; waits for all of them."""
    return bool(highest(int(flag)))


def check_layout(work: Path, layout: str) -> None:
    """Refuse to go on from checkpoints of processes arranged in another way. Raises UserError with what to do."""
    for marker in work.glob(f"checkpoint-*/{WHOLE}"):
        if (found := marker.read_text()) != layout:
            raise UserError(
                f"hardware.devices: {marker.parent} was saved by {found or 'an earlier version'}, not by {layout}; "
                f"go on as it was begun, or delete {work} to start this training afresh"
            )


def latest_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint; folders torn by a crash are removed, so one process alone looks."""
    whole = []
    for folder in work.glob("checkpoint-*"):
        if (folder / WHOLE).exists():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return str(max(whole, key=lambda f: int(f.name.removeprefix("checkpoint-")))) if whole else None
