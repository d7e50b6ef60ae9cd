"""The last look before answers are handed on: each one there, once, and no other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from src.generation.contract import Request
from src.kernel.cells import Cells
from src.kernel.config import UserError
from src.kernel.rows import ROWS


def refuse_twofold(cells: Cells) -> None:
    """Raises UserError where a cell was made twice and not alike: which one counts would be chance."""
    for key, value, path in cells.again:
        if not np.array_equal(value["token_ids"], cells.values[key]["token_ids"]):
            raise UserError(
                f"generate: {path}: has another answer for {key} than an earlier file; delete it: "
                "what it held beside that is made again"
            )


def check_complete(folder: Path, requests: list[Request]) -> None:
    """Compare the RESPONSES rows on disk with what was asked. Raises UserError naming a cell that is not as it should.

    A cell is known by its seed, which depends on the run's seed, the prompt and k.
    """
    table = pq.ParquetFile(folder / ROWS).read(columns=["prompt_id", "responses.list.element.seed"])
    rows = [(row["prompt_id"], [answer["seed"] for answer in row["responses"]]) for row in table.to_pylist()]
    found = Counter((prompt_id, seed) for prompt_id, seeds in rows for seed in seeds)
    asked = {(r.prompt_id, seed): f"prompt {r.prompt_id}, answer {k}" for r in requests for k, seed in r.seeds.items()}
    wrong = [f"{name}: missing" for cell, name in asked.items() if cell not in found]
    wrong += [f"{asked.get(cell, f'prompt {cell[0]}')}: {n} times" for cell, n in found.items() if n > 1]
    wrong += [f"prompt {cell[0]}: an answer nobody asked for" for cell in found if cell not in asked]
    if wrong:
        raise UserError(f"generate: {len(wrong)} answers are not as they were asked for; first, {wrong[0]}")
