"""Which instructions an answer to each prompt of IFEval has to follow, beside the prompts of an artifact."""

from __future__ import annotations

import json
from pathlib import Path

from src.evaluation.ifeval.checker import Question
from src.kernel.rows import PROMPTS, read_rows

INSTRUCTIONS = "instructions.jsonl"
"""A line a row with key, prompt, instruction_id_list and kwargs."""


def read_questions(folder: Path) -> list[tuple[str, Question]]:
    """(prompt_id, question) in their order."""
    rows = read_rows(folder, PROMPTS)
    lines = (folder / INSTRUCTIONS).read_text(encoding="utf-8").split("\n")[:-1]
    return [(row["prompt_id"], json.loads(line)) for row, line in zip(rows, lines, strict=True)]
