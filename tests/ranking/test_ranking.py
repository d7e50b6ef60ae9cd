"""Rank: the stage around any ranker keeps order, progress and sanity, and tells of its ranker."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pytest
from made_up_rankings import NAN

from src.kernel.artifact import WORK
from src.kernel.config import Free, UserError, config
from src.kernel.rows import RANKING, RESPONSES, ROWS, Row, read_rows, write_rows
from src.ranking.stage import Rank, Ranker, diagnose, in_batches


def row(question: str, answers: list[str]) -> Row:
    """A RESPONSES row whose id is its question."""
    texts = [{"text": text, "token_ids": [1], "finish_reason": "stop", "seed": 0, "source": ""} for text in answers]
    chat = [{"role": "user", "content": question}]
    rest = {"source": "test", "checks": "[]", "prompt_token_ids": [0], "responses": texts}
    return {"prompt_id": question, "messages": chat} | rest


@config
class ByLength(Ranker):
    """Longer is better; fails at the prompt `fails_at`, or says `says` of every answer."""

    scalar: ClassVar[bool] = True

    name: Free[str] = "length"
    batch_prompts: Free[int] = 1
    fails_at: Free[str] = ""
    says: Free[str] = ""
    pairwise: Free[bool] = False

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        return in_batches(lambda some: [self._row(one) for one in some], rows, self.batch_prompts, work)

    def _row(self, one: Row) -> Row:
        SEEN.append(one["prompt_id"])
        if one["prompt_id"] == self.fails_at:
            raise RuntimeError("pulled")
        lengths = [float(self.says or len(answer["text"])) for answer in one["responses"]]
        logits = [[NAN, lengths[1]], [0.0, NAN]] if self.pairwise else None
        rest = {"truncated": [False] * len(lengths), "prompt_truncated": False, "terms": None}
        return {"scores": None if self.pairwise else lengths, "logits": logits} | rest


SEEN: list[str] = []


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    SEEN.clear()
    write_rows(tmp_path, [row(q, ["a", "bb"]) for q in "pqrs"], RESPONSES)
    return tmp_path


def test_scores_that_are_not_finite_are_refused_with_the_prompt(responses: Path) -> None:
    """NaN on the diagonal of logits is no fault."""
    for says, pairwise in product(("nan", "inf", "-inf"), (False, True)):
        (out := responses / f"{says} {pairwise}").mkdir()
        with pytest.raises(UserError, match="NaN or infinity for prompt p"):
            Rank(ranker=ByLength(says=says, pairwise=pairwise))(responses, out=out)
    (responses / "out").mkdir()
    Rank(ranker=ByLength(pairwise=True))(responses, out=responses / "out")
    assert read_rows(responses / "out", RANKING)[0]["logits"][0][1] == 2.0


def test_rank_goes_on_where_it_was_interrupted(responses: Path) -> None:
    """The same rows as in one go, and no prompt of a finished batch is looked at twice."""
    for name in ("whole", "out"):
        (responses / name).mkdir()
    Rank(ranker=ByLength(batch_prompts=4))(responses, out=responses / "whole")
    SEEN.clear()
    with pytest.raises(RuntimeError, match="pulled"):
        Rank(ranker=ByLength(fails_at="r"))(responses, out=responses / "out")
    assert not (responses / "out" / ROWS).exists() and (responses / "out" / WORK).exists()
    Rank(ranker=ByLength())(responses, out=responses / "out")
    assert SEEN == ["p", "q", "r", "r", "s"]
    whole, out = (read_rows(responses / name, RANKING) for name in ("whole", "out"))
    assert whole == out and [(row["prompt_id"], row["scores"]) for row in out] == [(q, [1.0, 2.0]) for q in "pqrs"]


# What a ranking tells of its ranker, on numbers small enough to check by hand ---------------------------------------


def answers(lengths: list[int], texts: list[str] | None = None) -> Row:
    texts = texts or [f"answer {k}" for k in range(len(lengths))]
    return {"responses": [{"text": t, "token_ids": [0] * n} for t, n in zip(texts, lengths, strict=True)]}


def ranking(logits: Any = None, scores: Any = None, truncated: Any = (), **more: Any) -> Row:
    rest = {"truncated": list(truncated), "prompt_truncated": False, "terms": None}
    return {"logits": logits, "scores": scores} | rest | more


def test_position_bias_is_what_being_shown_first_is_worth() -> None:
    """C_12 = 3, C_21 = -1: the lead is 2, the first place is worth (3 - 1) / 2 = 1."""
    found = diagnose([answers([1, 1])], [ranking([[NAN, 3.0], [-1.0, NAN]])])
    assert (found["position_bias"], found["position_bias_abs"], found["first_place_flips"]) == (1.0, 1.0, 0.0)
    found = diagnose([answers([1, 1])], [ranking([[NAN, 3.0], [1.0, NAN]])])
    assert found["first_place_flips"] == 1.0, "whoever is shown first wins"
    # The same text twice: C_12 = C_21 = 1 is position bias, but no winner that depends on the order.
    twins = ranking([[NAN, 1.0, 3.0], [1.0, NAN, 3.0], [-1.0, -1.0, NAN]])
    found = diagnose([answers([1, 1, 1], ["a", "a", "b"])], [twins])
    assert (found["first_place_flips"], found["position_bias"]) == (0.0, 1.0)


def test_where_nothing_can_be_said_nothing_is_said() -> None:
    found = diagnose([answers([3])], [ranking(scores=[1.0])])
    assert found["first_place_flips"] is found["length_correlation"] is found["intransitive_triads"] is None
    found = diagnose([answers([1, 1, 1])], [ranking(scores=[1.0, 2.0, 3.0])])
    assert (found["position_bias"], found["first_place_flips"], found["intransitive_triads"]) == (None, None, 0.0)


def test_what_was_cut_off_what_is_identical_and_what_a_judge_said_is_counted() -> None:
    rows = [answers([1, 2, 1], ["a", "b", "a"]), answers([5, 5], ["a", "a"])]
    terms = [{"name": "malformed_verdicts", "values": [0.5, 0.5]}, {"name": "judge_input_tokens", "values": [30, 12]}]
    rankings = [
        ranking(scores=[1, 2, 1], truncated=[True, False, True]),
        ranking(scores=[0, 0], truncated=[False, False], prompt_truncated=True),
    ]
    found = diagnose(rows, rankings)
    assert (found["prompts"], found["answers"]) == (2, 5)
    assert (found["truncated_answers"], found["truncated_prompts"], found["identical_answers"]) == (2, 1, 2)
    assert found["malformed_verdicts"] is None
    found = diagnose(rows, [one | {"terms": terms} for one in rankings])
    assert (found["malformed_verdicts"], found["judge_input_tokens"], found["judge_output_tokens"]) == (2.0, 84.0, None)


def test_length_correlation_is_within_prompts() -> None:
    """Longer wins within each prompt, though the prompt of long answers has low scores: r is +1, not negative."""
    rows = [answers([1, 2, 3]), answers([101, 102, 103])]
    rankings = [ranking(scores=[10.0, 11.0, 12.0]), ranking(scores=[0.0, 1.0, 2.0])]
    assert diagnose(rows, rankings)["length_correlation"] == pytest.approx(1.0)
    assert diagnose(rows[:1], [ranking(scores=[3.0, 2.0, 1.0])])["length_correlation"] == pytest.approx(-1.0)
