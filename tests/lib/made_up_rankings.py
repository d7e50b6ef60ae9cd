"""Rankings made by hand or by hypothesis, as rows without the prompt."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from src.kernel.rows import Row

NAN = float("nan")
numbers = st.floats(-50, 50)


def scalar(scores: list[float]) -> Row:
    return {"scores": scores, "logits": None}


def matrix_of(logits: list[list[float]]) -> Row:
    return {"scores": None, "logits": logits}


@st.composite
def rankings(draw: Any) -> Row:
    """Scores of 2 to 8 answers, or directed logits with a NaN diagonal."""
    k = draw(st.integers(2, 8))
    if draw(st.booleans()):
        return scalar(draw(st.lists(numbers, min_size=k, max_size=k)))
    logits = draw(st.lists(st.lists(numbers, min_size=k, max_size=k), min_size=k, max_size=k))
    return matrix_of([[NAN if i == j else c for j, c in enumerate(row)] for i, row in enumerate(logits)])


def moved(ranking: Row, order: list[int]) -> Row:
    """The same word of the same answers in another order."""
    return {
        "scores": ranking["scores"] and [ranking["scores"][i] for i in order],
        "logits": ranking["logits"] and [[ranking["logits"][i][j] for j in order] for i in order],
    }


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))
