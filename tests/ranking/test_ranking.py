"""Rank: the stage around any ranker keeps order, progress and sanity."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from src import records
from src.artifact import WORK, Stage
from src.config import Free, UserError, config
from src.ranking.stage import Rank, Ranker, in_batches
from src.records import Row


def row(question: str, answers: list[str]) -> Row:
    """A RESPONSES row whose id is its question."""
    texts = [{"text": text, "token_ids": [1], "finish_reason": "stop", "seed": 0, "source": ""} for text in answers]
    chat = [{"role": "user", "content": question}]
    rest = {"source": "test", "checks": "[]", "prompt_token_ids": [0], "responses": texts}
    return {"prompt_id": question, "messages": chat} | rest


@config
class ByLength:
    """Longer is better; fails at the prompt `fails_at`, or says `says` of every answer."""

    scalar: ClassVar[bool] = True

    name: Free[str] = "length"
    batch_prompts: Free[int] = 1
    fails_at: Free[str] = ""
    says: Free[str] = ""
    pairwise: Free[bool] = False

    @property
    def models(self) -> tuple[Stage, ...]:
        return ()

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        return in_batches(lambda some: [self._row(one) for one in some], rows, self.batch_prompts, work)

    def _row(self, one: Row) -> Row:
        SEEN.append(one["prompt_id"])
        if one["prompt_id"] == self.fails_at:
            raise RuntimeError("pulled")
        lengths = [float(self.says or len(answer["text"])) for answer in one["responses"]]
        rest = {"truncated": [False] * len(lengths), "prompt_truncated": False, "terms": None}
        if self.pairwise:
            return {"scores": None, "logits": [[float("nan"), lengths[1]], [0.0, float("nan")]]} | rest
        return {"scores": lengths, "logits": None} | rest


SEEN: list[str] = []


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    SEEN.clear()
    records.write_rows(tmp_path, [row(q, ["a", "bb"]) for q in "pqrs"], records.RESPONSES)
    return tmp_path


def test_a_double_of_ten_lines_is_a_ranker() -> None:
    assert isinstance(ByLength(), Ranker)


def test_rank_keeps_the_order_of_the_prompts(responses: Path) -> None:
    (responses / "out").mkdir()
    Rank(ranker=ByLength(batch_prompts=3))(responses, out=responses / "out")
    rows = records.read_rows(responses / "out", records.RANKING)
    assert [r["prompt_id"] for r in rows] == ["p", "q", "r", "s"]
    assert [r["scores"] for r in rows] == [[1.0, 2.0]] * 4


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("says", ["nan", "inf", "-inf"])
def test_scores_that_are_not_finite_are_refused_with_the_prompt(says: str, pairwise: bool, responses: Path) -> None:
    (responses / "out").mkdir()
    with pytest.raises(UserError, match="NaN or infinity for prompt p"):
        Rank(ranker=ByLength(says=says, pairwise=pairwise))(responses, out=responses / "out")


def test_nan_on_the_diagonal_of_logits_is_no_fault(responses: Path) -> None:
    (responses / "out").mkdir()
    Rank(ranker=ByLength(pairwise=True))(responses, out=responses / "out")
    assert records.read_rows(responses / "out", records.RANKING)[0]["logits"][0][1] == 2.0


def test_rank_goes_on_where_it_was_interrupted(responses: Path) -> None:
    """The same rows as in one go, and no prompt of a finished batch is looked at twice."""
    for name in ("whole", "out"):
        (responses / name).mkdir()
    Rank(ranker=ByLength(batch_prompts=4))(responses, out=responses / "whole")
    SEEN.clear()
    with pytest.raises(RuntimeError, match="pulled"):
        Rank(ranker=ByLength(fails_at="r"))(responses, out=responses / "out")
    assert not (responses / "out" / records.ROWS).exists() and (responses / "out" / WORK).exists()
    Rank(ranker=ByLength())(responses, out=responses / "out")
    assert SEEN == ["p", "q", "r", "r", "s"]
    whole, out = (records.read_rows(responses / name, records.RANKING) for name in ("whole", "out"))
    assert whole == out
