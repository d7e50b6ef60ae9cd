"""A ranker that only counts words: what a policy learns from it shows how hard a length bias pulls."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

from pydantic import PositiveFloat, PositiveInt

from src.kernel.config import config
from src.kernel.rows import Row
from src.ranking.stage import Ranker


@config
class AboutSoLong(Ranker):
    """score = -|log(n / words)| / tau for an answer of n words."""

    scalar: ClassVar[bool] = True
    code_version: ClassVar[int] = 1

    words: PositiveInt
    """Words of the best answer."""
    tau: PositiveFloat
    """Score difference that wins with probability 0.73."""

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        return [self._row([answer["text"] for answer in row["responses"]]) for row in rows]

    def _row(self, answers: list[str]) -> Row:
        counts = [max(1, len(answer.split())) for answer in answers]
        scores = [-abs(math.log(count / self.words)) / self.tau for count in counts]
        nothing_cut = {"truncated": [False] * len(answers), "prompt_truncated": False}
        return {"logits": None, "scores": scores, "terms": None} | nothing_cut
