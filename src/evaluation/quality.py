"""What a win rate can hide: length, finished and empty answers, repetition, checks kept on seen and unseen kinds."""

from __future__ import annotations

import json

import numpy as np

from src.data import checks
from src.data.collapse import repetition
from src.kernel.rows import Row

Quality = (
    "tokens",
    "words",
    "finished",
    "empty",
    "repetition",
    "seen_checks",
    "seen_kept",
    "unseen_checks",
    "unseen_kept",
    "relevance",
    "pmi",
    "echo",
)
"""Columns of one answer; counts for the checks, 0 or 1 for `finished` and `empty`, NaN for terms a ranker lacks."""


def quality_columns(row: Row, ranking: Row, position: int) -> dict[str, float]:
    """The columns of the first answer of a RESPONSES row; it is answer `position` of `ranking`, which brings terms."""
    answer = row["responses"][0]
    terms = {term["name"]: term["values"][position] for term in ranking["terms"] or []}
    listed = json.loads(row["checks"])
    kept = checks.verdicts(listed, answer["text"])
    unseen = [check["kind"] in checks.HELD_OUT_KINDS for check in listed]
    return {
        "tokens": len(answer["token_ids"]),
        "words": len(answer["text"].split()),
        "finished": float(answer["finish_reason"] == "stop"),
        "empty": float(not answer["text"].strip()),
        "repetition": repetition(answer["text"]),
        "seen_checks": unseen.count(False),
        "seen_kept": sum(k for k, new in zip(kept, unseen, strict=True) if not new),
        "unseen_checks": unseen.count(True),
        "unseen_kept": sum(k for k, new in zip(kept, unseen, strict=True) if new),
    } | {name: terms.get(name, np.nan) for name in ("relevance", "pmi", "echo")}


def summarise(rows: list[Row]) -> dict[str, float]:
    """Means over the prompts; check accuracies are over single checks."""
    column = {name: np.array([row[name] for row in rows], dtype=float) for name in Quality}
    counts = ("seen_checks", "seen_kept", "unseen_checks", "unseen_kept")
    return {name: float(column[name].mean()) for name in Quality if name not in counts} | {
        "seen_checks": int(column["seen_checks"].sum()),
        "seen_accuracy": _share(column["seen_kept"], column["seen_checks"]),
        "unseen_checks": int(column["unseen_checks"].sum()),
        "unseen_accuracy": _share(column["unseen_kept"], column["unseen_checks"]),
    }


def _share(kept: np.ndarray, asked: np.ndarray) -> float:
    return float(kept.sum() / asked.sum()) if asked.sum() else float("nan")
