"""A ranker that compares two answers, with logits instead of scores, goes through the whole pipeline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from tiny_run import HELD_OUT, World, tiny

from src import records
from src.artifact import Stage
from src.config import Free, config
from src.provenance import read_record
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
        return {
            "logits": logits,
            "scores": None,
            "truncated": [False] * len(q),
            "prompt_truncated": False,
            "terms": None,
        }


def quality(answer: Row) -> float:
    return len(set(answer["text"])) / 2


@pytest.mark.full
def test_a_ranker_that_compares_two_answers_goes_through_the_same_pipeline(llama: Path, tmp_path: Path) -> None:
    """P(y > y') = sigma(q - q'): the liking for the first place goes out of (C_ij - C_ji) / 2."""
    duel = ["~ranker", f"+ranker={{_target_: {__name__}.Duel, name: duel}}"]
    world = World(tmp_path, tiny(llama, tmp_path, ranker=duel))
    assert world.run("iter=2") == 0
    made = {read_record(path)["name"] for path in world.store.artifacts()}
    assert {"it1/joint_answers", "it2/joint_ranking"} <= made and "base/answers_ranking" not in made
    answers = {row["prompt_id"]: row for row in records.read_rows(world.artifact("it2/responses"), records.RESPONSES)}
    for pair in records.read_rows(world.artifact("it2/pairs"), records.PAIRS):
        q = [quality(answer) for answer in answers[pair["prompt_id"]]["responses"]]
        assert (q[pair["chosen_index"]], q[pair["rejected_index"]]) == (max(q), min(q))
    new, base, null = (
        [
            quality(row["responses"][0])
            for row in records.read_rows(world.artifact(f"{name}/answers"), records.RESPONSES)
        ]
        for name in ("it2", "base", "null")
    )
    metrics = world.metrics("it2/evaluation")
    assert len(new) == HELD_OUT
    assert metrics["win_over_base"] == pytest.approx(np.mean([sigma(a - b) for a, b in zip(new, base, strict=True)]))
    assert metrics["null_win"] == pytest.approx(np.mean([sigma(a - b) for a, b in zip(null, base, strict=True)]))
    assert "| – |" in (world.folder / "report.md").read_text()  # it has no relevance to show


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))
