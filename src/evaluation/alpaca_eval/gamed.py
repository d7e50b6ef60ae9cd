"""df_gamed.csv: what the length control is fitted to besides the model, and the difficulty of the instructions."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.evaluation.alpaca_eval.annotations import official_ids
from src.evaluation.alpaca_eval.length_control import Gamed
from src.kernel.config import UserError

GAMED = "gamed.csv"
"""In an artifact."""
NOISE = 1e-6
"""Between what two rows say of one instruction; the first is taken, as in the library."""
COLUMNS = ("index", "preference", "std_delta_len", "instruction_difficulty")


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
