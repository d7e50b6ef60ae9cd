"""Prompts that spell a mark of the chat template which the tokenizer cannot tell from text: counted, and told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from src.kernel.rows import Row

SPELT = "marks_spelt"
"""The metric: so many prompts."""


def spelling(rows: Sequence[Row], marks: Sequence[str]) -> list[str]:
    """Ids of PROMPTS rows with such a mark in any of their turns."""
    return [
        row["prompt_id"] for row in rows if any(mark in turn["content"] for mark in marks for turn in row["messages"])
    ]


def said_spelt(metrics: Mapping[str, Any]) -> list[str]:
    """A line where there are any; of what older artifacts do not know, none."""
    if not (count := metrics.get(SPELT)):
        return []
    what = "spell a mark of the chat template that is ordinary text to the tokenizer, and may forge a turn"
    return [f"{count} of {metrics['prompts']} prompts {what}; take it out of them"]


def shown(ids: Sequence[str], marks: Sequence[str]) -> str:
    """To look them up; empty where there are none."""
    return f" ({', '.join(marks)}; the first is prompt {ids[0]})" if ids else ""
