"""Run one contender of the trainer benchmark in its own process: it takes a step each time it is told to.

stdin: one line per step. stdout: one JSON object when ready and one after each step.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from bench.shapes import build

BETA = 0.1
"""Large, because the two losses are compared, and small targets show small differences."""


class Pacer(TrainerCallback):
    """Wait for a line before each step, and report after it. A step is timed from the line to the updated weights."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.channel = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is none of the protocol's
        self.begun = 0.0

    def say(self, **figures: float) -> None:
        print(json.dumps(figures), file=self.channel, flush=True)
        if not sys.stdin.readline():
            sys.exit()
        self.begun = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        for group in optimizer.param_groups:
            group["foreach"] = False  # on GPUs it would hold a second copy of all weights for a moment
        self.say(ready=1)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.begun

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.say(seconds=self.seconds, peak_gb=self._peak_gb(), loss=logs["loss"])

    def _peak_gb(self) -> float:
        if self.on_gpu:
            return torch.cuda.max_memory_allocated() / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    contender, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    pacer = Pacer(job["device"] == "cuda")
    model = build(job["model"], job["device"])
    torch.set_autocast_cache_enabled(False)  # as our trainer does: no contender keeps bf16 copies of all weights
    if contender.startswith("trl") and pacer.on_gpu and model.config.model_type == "gemma2":
        model.set_attn_implementation("flex_attention")  # it honours the soft-cap; the default is eager
    with tempfile.TemporaryDirectory() as folder:
        if contender.startswith("trl"):
            from bench.trl_trainer import trainer_of
        else:
            from bench.our_trainer import trainer_of
        trainer_of(contender, model, job, Path(folder), [pacer]).train()


if __name__ == "__main__":
    main()
