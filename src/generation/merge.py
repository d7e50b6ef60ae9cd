"""Merge: the answers of several responses artifacts side by side, for rankers that must see both answers at once.

In: two or more responses artifacts over the same prompts. Out: RESPONSES rows with the answers in the order given.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from src.kernel.config import UserError, config
from src.kernel.rows import RESPONSES, read_rows, write_rows


@config
class Merge:
    kind: ClassVar[str] = "responses"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    def __call__(self, *inputs: Path, out: Path) -> None:
        first, *others = [read_rows(path, RESPONSES) for path in inputs]
        for path, rows in zip(inputs[1:], others, strict=True):
            if [row["prompt_id"] for row in rows] != [row["prompt_id"] for row in first]:
                raise UserError(f"{path}: answers other prompts than {inputs[0]}")
        merged = (
            row | {"responses": row["responses"] + [a for rows in others for a in rows[i]["responses"]]}
            for i, row in enumerate(first)
        )
        write_rows(out, merged, RESPONSES)
