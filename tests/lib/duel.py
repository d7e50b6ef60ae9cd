"""A ranker that compares two answers, with logits instead of scores."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from src.artifact import Stage
from src.config import Free, config
from src.records import Row


@config
class Duel:
    """Compares two answers by their number of different characters, and likes what it is shown first."""

    scalar: ClassVar[bool] = False

    name: Free[str]

    @property
    def models(self) -> tuple[Stage, ...]:
        return ()

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        return [self._row([quality(answer) for answer in row["responses"]]) for row in rows]

    def _row(self, q: list[float]) -> Row:
        logits = [[float("nan") if i == j else a - b + 1 for j, b in enumerate(q)] for i, a in enumerate(q)]
        rest = {"truncated": [False] * len(q), "prompt_truncated": False, "terms": None}
        return {"logits": logits, "scores": None} | rest


DUEL = ["~ranker", f"+ranker={{_target_: {__name__}.Duel, name: duel}}"]
"""Overrides that make it the ranker of a run."""


def quality(answer: Row) -> float:
    return len(set(answer["text"])) / 2
