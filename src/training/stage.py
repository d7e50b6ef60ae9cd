"""Train: gradient steps on one model against stored reference log-probabilities.

In: reference, policy. Out: a checkpoint folder (the next policy) and `metrics.jsonl` (one line per optimiser step; but
for the figures under `speed/` the same bytes however often the run was interrupted).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import ClassVar

from src.kernel.artifact import WORK, Node, Takes
from src.kernel.config import config
from src.kernel.disk import write_atomic
from src.methods.method import Method
from src.modeling.checkpoints import start_of
from src.modeling.policy import check_files
from src.training.launch import train_in_processes
from src.training.memory import check_memory
from src.training.recipe import Devices, Recipe


@config
class Train:
    """Train a policy by `method`: in this process, or in several under DeepSpeed."""

    kind: ClassVar[str] = "policy"
    version: ClassVar[int] = 2
    resumable: ClassVar[bool] = True

    method: Method
    recipe: Recipe
    devices: Devices
    seed: int

    def takes(self) -> Takes:
        per_node = self.devices.count // self.devices.nodes
        return Takes("hardware.devices.count", self.devices.count, per_node, self.devices.device == "cuda")

    def foresee(self, inputs: Sequence[Path | None], start: Path | None) -> str:
        """Return the expected peak of memory. Raises UserError where the training cannot fit."""
        policy = inputs[1] or start
        return f"training: {check_memory(policy, self.recipe, self.devices)}" if policy else ""

    def check(self, node: Node) -> None:
        """Raise UserError where no batch can be full, or the model is too large or too short-sighted for it."""
        if node.work:
            self.recipe.check_pairs(node.work // self.recipe.epochs, planned=True)
        start = start_of(node.inputs[1])
        if folder := start.here():
            check_files(folder, self.recipe.lengths.max_total, "train.lengths.max_total")
        if self.devices.memory_gb and (known := folder or start.weights):  # else of the machine that will train
            check_memory(known, self.recipe, self.devices)

    def __call__(self, *inputs: Path, out: Path) -> None:
        from src.training.checkpoints import STOP, check_layout
        from src.training.trainer import train

        reference, policy = inputs
        check_memory(policy, self.recipe, self.devices)
        check_layout(out / WORK, self.devices.layout)
        (out / WORK).mkdir(parents=True, exist_ok=True)
        stop = out / WORK / STOP
        stop.unlink(missing_ok=True)
        run = train if self.devices.deepspeed is None else train_in_processes
        with signals_as_file(stop):
            run(self.method, self.recipe, self.devices, self.seed, reference, policy, out)
        if stop.exists():  # too late for the training, which is done
            os.kill(os.getpid(), int(stop.read_text()))


@contextmanager
def signals_as_file(file: Path) -> Iterator[None]:
    """On SIGTERM or SIGUSR1, write the signal's number to `file`: training looks there at the end of each step."""

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        write_atomic(file, str(number).encode())

    handlers = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
