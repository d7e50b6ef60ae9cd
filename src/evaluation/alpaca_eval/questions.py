"""What AlpacaEval asks, and what its length control was fitted to besides the model.

AlpacaEvalQuestions: PROMPTS rows, and `reference_outputs.json` with the baseline's outputs, in the official format.
AlpacaEvalGamed: `gamed.csv`, which carries the difficulty of the instructions too.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import PositiveInt

from src import records
from src.config import UserError, config
from src.evaluation.alpaca_eval.annotations import BASELINE, instruction_id, official_ids, read_outputs, write_rows
from src.evaluation.alpaca_eval.hub_file import HubFile
from src.evaluation.alpaca_eval.length_control import Gamed

GAMED = "gamed.csv"
NOISE = 1e-6
"""Between what two rows say of one instruction; the first is taken, as in the library."""
COLUMNS = ("index", "preference", "std_delta_len", "instruction_difficulty")


@config
class AlpacaEvalQuestions:
    """The instructions of a file of outputs, in its order, or the first of them."""

    kind: ClassVar[str] = "alpaca_eval_questions"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    baseline: HubFile
    """Outputs of the model that all are compared with."""
    first: PositiveInt | None
    """Null: all."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        asked = read_outputs(self.baseline.fetch())[: self.first]
        prompts = [
            {
                "prompt_id": instruction_id(row.instruction),
                "messages": [{"role": "user", "content": row.instruction}],
                "source": row.dataset,
                "checks": "[]",
            }
            for row in asked
        ]
        records.write_rows(out, prompts, records.PROMPTS)
        write_rows(out / BASELINE, asked)


@config
class AlpacaEvalGamed:
    """The baseline told to be short, or long, judged against itself."""

    kind: ClassVar[str] = "alpaca_eval_gamed"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    file: HubFile

    def __call__(self, *inputs: Path, out: Path) -> None:
        path = self.file.fetch()
        read_gamed(path)
        shutil.copyfile(path, out / GAMED)


class Control(NamedTuple):
    gamed: Gamed
    difficulty: dict[str, float]
    """By the id of the instruction."""


def read_gamed(path: Path) -> Control:
    """Of a file in the format of df_gamed.csv, whose `index` counts the 805 instructions in the canonical order.

    Raises UserError for any other file.
    """
    numbers = _numbers(path)
    ids, difficulty = official_ids(), {}
    for row in range(len(numbers["index"])):
        index, value = numbers["index"][row], numbers["instruction_difficulty"][row]
        if not 0 <= index < len(ids) or index != int(index):
            raise UserError(f"{path}: row {row} (from 0): index: {index:g} is none from 0 to {len(ids) - 1}")
        if abs(difficulty.setdefault(ids[int(index)], value) - value) > NOISE:
            raise UserError(f"{path}: row {row} (from 0): instruction {index:g} has another difficulty before")
    if len(difficulty) < len(ids):
        lacking = next(i for i, one in enumerate(ids) if one not in difficulty)
        raise UserError(f"{path}: {len(ids) - len(difficulty)} of {len(ids)} instructions missing, the first {lacking}")
    gamed = Gamed(numbers["preference"], numbers["std_delta_len"], numbers["instruction_difficulty"])
    if not ((gamed.preference >= 0) & (gamed.preference <= 1)).all():
        raise UserError(f"{path}: preference: must be from 0 (the baseline) to 1")
    return Control(gamed, difficulty)


def _numbers(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if lacking:
                raise UserError(f"{path}: lacks the columns {', '.join(lacking)}")
            rows = [[float(row[name]) for name in COLUMNS] for row in reader]
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a readable table of numbers ({error})") from None
    if not rows or not np.isfinite(rows).all():
        raise UserError(f"{path}: {'a number is missing or infinite' if rows else 'no rows in it'}")
    return dict(zip(COLUMNS, np.array(rows).T, strict=True))
