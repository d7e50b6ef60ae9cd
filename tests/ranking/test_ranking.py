"""Rank: the stage around any ranker keeps order, progress and sanity, and tells of its ranker."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
from made_up_rankings import NAN

from src.kernel.config import Free, UserError, config
from src.kernel.rows import RANKING, RESPONSES, ROWS, Row, read_rows, write_rows
from src.ranking.stage import Rank, Ranker, checked, diagnose, in_batches

SEEN: list[str] = []


def answers(lengths: list[int], texts: list[str] | None = None, prompt: str = "p") -> Row:
    """Make a RESPONSES row with answers of so many tokens."""
    texts = texts or [f"answer {k}" for k in range(len(lengths))]
    rest = {"finish_reason": "stop", "seed": 0, "source": ""}
    made = [{"text": t, "token_ids": [0] * n} | rest for t, n in zip(texts, lengths, strict=True)]
    chat = {"messages": [{"role": "user", "content": prompt}], "source": "test", "checks": "[]"}
    return {"prompt_id": prompt, "prompt_token_ids": [0], "responses": made} | chat


def ranking(logits: Any = None, scores: Any = None, truncated: Any = (), **more: Any) -> Row:
    rest = {"truncated": list(truncated), "prompt_truncated": False, "terms": None}
    return {"logits": logits, "scores": scores} | rest | more


@config
class ByLength(Ranker):
    """Longer is better. It fails at the prompt `fails_at`."""

    scalar: ClassVar[bool] = True

    fails_at: Free[str] = ""

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        return in_batches(self._ranked, rows, 1, work)

    def _ranked(self, rows: list[Row]) -> list[Row]:
        SEEN.extend(row["prompt_id"] for row in rows)
        if SEEN[-1] == self.fails_at:
            raise RuntimeError("pulled")
        return [ranking(scores=[float(len(answer["token_ids"])) for answer in row["responses"]]) for row in rows]


def test_rank_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    """The rows are those of the responses in their order, and no prompt of a finished batch is looked at twice."""
    SEEN.clear()
    write_rows(tmp_path, [answers([1, 2], prompt=prompt) for prompt in "pqrs"], RESPONSES)
    (out := tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError, match="pulled"):
        Rank(ranker=ByLength(name="length", fails_at="r"))(tmp_path, out=out)
    assert not (out / ROWS).exists()
    Rank(ranker=ByLength(name="length"))(tmp_path, out=out)
    assert SEEN == ["p", "q", "r", "r", "s"]
    assert [(row["prompt_id"], row["scores"]) for row in read_rows(out, RANKING)] == [(q, [1.0, 2.0]) for q in "pqrs"]


def test_what_is_not_finite_is_refused_by_prompt_and_answers() -> None:
    """NaN on the diagonal of logits is no fault."""
    for row, place in (
        (ranking(scores=[0.0, math.inf]), "answer 2"),
        (ranking(scores=[NAN, 0.0]), "answer 1"),
        (ranking([[NAN, 1.0], [-math.inf, NAN]]), "answers 2 and 1"),
        (ranking([[NAN, None], [0.0, NAN]]), "answers 1 and 2"),
    ):
        with pytest.raises(UserError, match=f"^ranker: it gave NaN or infinity for prompt p, {place}; "):
            checked({"prompt_id": "p"}, row)
    checked({"prompt_id": "p"}, ranking([[NAN, 1.0], [0.0, NAN]]))


# What a ranking tells of its ranker, on numbers small enough to check by hand ---------------------------------------


def test_position_bias_is_what_being_shown_first_is_worth() -> None:
    """C_12 = 3, C_21 = -1: the lead is 2, the first place is worth (3 - 1) / 2 = 1.

    With C_21 = 1 whoever is shown first wins. The same text twice, C_12 = C_21 = 1, is position bias too, but no
    winner that depends on the order.
    """
    pair, twins = answers([1, 1]), answers([1, 1, 1], ["a", "a", "b"])
    for row, logits, expected in (
        (pair, [[NAN, 3.0], [-1.0, NAN]], (1.0, 1.0, 0.0)),
        (pair, [[NAN, 1.0], [-3.0, NAN]], (-1.0, 1.0, 0.0)),
        (pair, [[NAN, 3.0], [1.0, NAN]], (2.0, 2.0, 1.0)),
        (twins, [[NAN, 1.0, 3.0], [1.0, NAN, 3.0], [-1.0, -1.0, NAN]], (1.0, 1.0, 0.0)),
    ):
        numbers = diagnose([row], [ranking(logits)])
        assert tuple(numbers[f"position_bias{name}"] for name in ("", "_abs")) == expected[:2]
        assert numbers["first_place_flips"] == expected[2]


def test_what_was_cut_off_what_is_identical_and_what_a_judge_said_is_counted() -> None:
    rows = [answers([1, 2, 1], ["a", "b", "a"]), answers([5, 5], ["a", "a"])]
    terms = [{"name": "malformed_verdicts", "values": [0.5, 0.5]}, {"name": "judge_input_tokens", "values": [30, 12]}]
    cut = ranking(scores=[1, 2, 1], truncated=[True, False, True], terms=terms)
    numbers = diagnose(rows, [cut, ranking(scores=[0, 0], truncated=[False, False], prompt_truncated=True)])
    expected = {"prompts": 2, "answers": 5, "truncated_answers": 2, "truncated_prompts": 1, "identical_answers": 2}
    expected |= {"malformed_verdicts": 1.0, "judge_input_tokens": 42.0, "judge_output_tokens": None}
    assert {name: numbers[name] for name in expected} == expected


def test_length_correlation_is_within_prompts() -> None:
    """Longer wins within each prompt, though the prompt of long answers has low scores: r is +1, not negative."""
    rows = [answers([1, 2, 3]), answers([101, 102, 103])]
    rankings = [ranking(scores=[10.0, 11.0, 12.0]), ranking(scores=[0.0, 1.0, 2.0])]
    assert diagnose(rows, rankings)["length_correlation"] == pytest.approx(1.0)
    assert diagnose(rows[:1], [ranking(scores=[3.0, 2.0, 1.0])])["length_correlation"] == pytest.approx(-1.0)
