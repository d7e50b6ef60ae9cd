"""A stage of training, random pairs, and what a training leaves, for the tests of the trainer."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from places import PYTHONPATH, ROOT
from safetensors.torch import load_file
from torch import Tensor

from src.kernel.artifact import WORK
from src.kernel.rows import PAIRS, SPEED, write_rows
from src.methods.method import Method, PairLogps
from src.methods.sppo import SPPO
from src.training.checkpoints import WHOLE
from src.training.metrics import StepMetrics
from src.training.recipe import DeepSpeed, Devices, Lengths, Recipe
from src.training.reference import Reference
from src.training.stage import Train

ETA = 10.0
LENGTHS = Lengths(max_prompt=16, max_total=40, truncation="separate")
Weights = dict[str, Tensor]
Inputs = tuple[Path, Path]
"""A reference and its policy."""
Result = tuple[Weights, list[dict[str, float]]]
"""Weights in fp32, and metrics without those of the clock."""
ZERO = {n: DeepSpeed(stage=n, offload=False) for n in (2, 3)}  # type: ignore[arg-type]


def train_stage(seed: int = 0, **changes: Any) -> Train:
    """Make a stage with some fields of its recipe or devices changed."""
    recipe = {"lr": 1e-4, "batch_pairs": 4, "epochs": 1, "schedule_epochs": 1, "schedule": "linear", "warmup": 0.0}
    recipe |= {"optimizer": "rmsprop", "weight_decay": 0.0, "max_grad_norm": None, "lengths": LENGTHS, "lora": None}
    recipe |= {"save_dtype": "float32"}
    devices = {"device": "cpu", "count": 1, "nodes": 1, "precision": "float32", "row_tokens": 60, "head_chunk": 8}
    devices |= {"attention": "segments", "deepspeed": None, "memory_gb": None, "peak_tflops": None}
    devices |= {"activation_checkpointing": False, "save_minutes": 60.0}
    changed = [{name: changes.pop(name, value) for name, value in part.items()} for part in (recipe, devices)]
    assert not changes, f"no such fields: {changes}"
    sppo = SPPO(name="sppo", eta=ETA, center=0.5)
    return Train(method=sppo, recipe=Recipe(**changed[0]), devices=Devices(**changed[1]), seed=seed)


def two(stage: int, **changes: Any) -> Train:
    """Make a stage of two processes; of 11 pairs, steps of 4, 4 and 3 pairs in rows of one to three."""
    return train_stage(**{"count": 2, "deepspeed": ZERO[stage], **changes})


def write_pairs(folder: Path, count: int) -> Path:
    """Write random pairs; answers have 1 to 20 tokens."""
    chance = random.Random(count)

    def ids(longest: int) -> list[int]:
        return [chance.randrange(300) for _ in range(chance.randint(1, longest))]

    rows = [
        {"prompt_id": str(i), "prompt_token_ids": ids(12), "chosen_token_ids": ids(20), "rejected_token_ids": ids(20)}
        | {"chosen_win": chance.uniform(0.5, 0.9), "rejected_win": chance.uniform(0.1, 0.5)}
        | {"chosen_beats_rejected": chance.uniform(0.5, 0.9), "chosen_index": 0, "rejected_index": 1}
        | {"chosen_source": "policy", "rejected_source": "policy"}
        for i in range(count)
    ]
    folder.mkdir(parents=True)
    write_rows(folder, rows, PAIRS)
    return folder


def write_reference(folder: Path, policy: Path, count: int, precision: Any = "float32") -> Path:
    """Write `count` random pairs with the log-probabilities that the Reference stage gives them."""
    stage = Reference(
        lengths=LENGTHS, precision=precision, device="cpu", batch_pairs=5, head_chunk=8, attention="segments"
    )
    stage(write_pairs(folder / "pairs", count), policy, out=folder)
    return folder


def metrics_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def result_of(out: Path) -> Result:
    rows = [{name: value for name, value in row.items() if not name.startswith(SPEED)} for row in metrics_of(out)]
    return {name: weight.float() for name, weight in load_file(out / "model.safetensors").items()}, rows


def step_sums(method: Method, counted: list[float], *rows: dict[str, list[float]]) -> dict[str, float]:
    """Return the sums of a step of rows of pairs. What a row does not name is 0; answers have 4 tokens, even odds."""
    Accelerator(cpu=True)
    metrics, usual = StepMetrics(method), dict.fromkeys(PairLogps._fields, 0.0)
    usual |= dict.fromkeys(PairLogps._fields[4:6], 4.0) | dict.fromkeys(PairLogps._fields[8:], 0.5)
    for row in rows:
        columns = {name: torch.tensor(row.get(name, [value] * len(counted))) for name, value in usual.items()}
        p = PairLogps(**columns)
        metrics.add(p, method.loss(p), torch.tensor(counted))
    return metrics.end()


def assert_same(weights: Weights, expected: Weights, largest: float, mean: float) -> None:
    """Bound the largest and the mean absolute difference over all weights."""
    assert weights.keys() == expected.keys()
    difference = torch.cat([(weights[name] - expected[name]).abs().flatten() for name in expected])
    assert difference.max() <= largest, f"largest difference {difference.max():.3g}"
    assert difference.mean() <= mean, f"mean difference {difference.mean():.3g}"


_PROCESS = """
import pickle, sys
from pathlib import Path
from src.kernel.config import Stopped
stage, reference, policy, out = pickle.loads(Path(sys.argv[1]).read_bytes())
try: stage(reference, policy, out=out)
except Stopped as stopped: sys.exit(stopped.exit_code)
"""


def hit(stage: Train, inputs: tuple[Path, Path], out: Path, number: int, step: int) -> int:
    """Train in another process that gets a signal after it has saved a step. Return its exit code."""
    job = out.with_suffix(".pickle")
    job.write_bytes(pickle.dumps((stage, *inputs, out)))
    command, env = [sys.executable, "-c", _PROCESS, str(job)], os.environ | {"PYTHONPATH": PYTHONPATH}
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 250
            while saved(out) < step and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(number)
            return process.wait(timeout=100)
        finally:
            process.kill()


def saved(out: Path) -> int:
    """Return the newest step of which a whole checkpoint is seen."""
    return max((int(p.parent.name.split("-")[1]) for p in out.glob(f"{WORK}/checkpoint-*/{WHOLE}")), default=0)
