"""Files of AlpacaEval that are made up, and a judge that compares lengths."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from answer_server import AnswerServer, Said

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


def longer(server: AnswerServer, number: int, chance: float = 0.75) -> Said:
    """Says that the longer of the outputs is better, with that probability, and a third token of a tenth of all."""
    first, second = shown(server.bodies[number])
    p = chance if len(first) > len(second) else 1 - chance
    return Said("m", top={"m": math.log(0.9 * p), "M": math.log(0.9 * (1 - p)), "The": math.log(0.1)})


def shown(body: dict[str, Any]) -> list[str]:
    """The two outputs, in the order in which the judge reads them."""
    return re.findall(r'"output": """(.*?)"""\n', body["messages"][1]["content"], re.DOTALL)
