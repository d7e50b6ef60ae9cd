"""Rows of answers without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from src.kernel.rows import Row, write_rows


def answered(prompt: int, text: str, checks: list[dict[str, Any]] | None = None, finish: str = "stop") -> Row:
    """A RESPONSES row of one answer with a token a character."""
    answer = {"text": text, "token_ids": [5] * len(text), "finish_reason": finish, "seed": 0, "source": "policy"}
    chat = [{"role": "user", "content": f"question {prompt}"}]
    rest = {"source": "", "checks": json.dumps(checks or []), "prompt_token_ids": [0], "responses": [answer]}
    return {"prompt_id": f"p{prompt}", "messages": chat} | rest


def written(folder: Path, rows: list[Row], schema: Any) -> Path:
    folder.mkdir(parents=True)
    write_rows(folder, rows, schema)
    return folder
