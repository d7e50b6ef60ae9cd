"""Files of AlpacaEval that are made up, and where the real ones are."""

from __future__ import annotations

import csv
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SHARED = Path(__file__).parents[3] / "shared/data/alpaca_eval2"
GAMED = SHARED / "glm/df_gamed_surrogate_SYNTHETIC.csv"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the official data is not beside this checkout (../shared/data)")
INSTRUCTIONS = [f"Made up {i}: say <b>{'so ' * i}</b> in {i + 2} words." for i in range(6)]


def outputs(path: Path, texts: list[str], generator: str = "baseline", instructions: list[str] = INSTRUCTIONS) -> Path:
    """A file of outputs in the official format."""
    rows = [
        {"instruction": one, "output": text, "generator": generator, "dataset": "made_up"}
        for one, text in zip(instructions, texts, strict=True)
    ]
    return written(path, rows)


def baseline(path: Path) -> Path:
    return outputs(path, [f"{'Well, ' * (i + 1)}so it is." for i in range(6)])


def annotation(instruction: str, preference: float | None, one: str = "a", two: str = "bb") -> dict[str, Any]:
    return {
        "instruction": instruction,
        "output_1": one,
        "generator_1": "baseline",
        "dataset": "made_up",
        "output_2": two,
        "generator_2": "model",
        "annotator": "weighted_alpaca_eval_gpt4_turbo",
        "preference": preference,
    }


def written(path: Path, rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def gamed(path: Path, count: int, seed: int = 0) -> Path:
    """A file like df_gamed.csv for so many instructions: two made-up baselines, all random."""
    lots = np.random.default_rng(seed)
    difficulty = lots.normal(size=count)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["model", "index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
        )
        for model in ("concise", "verbose"):
            for i in range(count):
                table.writerow([model, i, lots.random(), lots.normal(), float(difficulty[i]), "False"])
    return path


@contextmanager
def quiet_library() -> Iterator[None]:
    """alpaca_eval uses what its packages deprecate, and sets the root logger's level when it is imported."""
    level = logging.getLogger().level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.getLogger().setLevel(level)
