"""What a ranking tells of its ranker, on numbers small enough to check by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.ranking.diagnostics import diagnose
from src.records import Row

NAN = float("nan")


def row(lengths: list[int], texts: list[str] | None = None) -> Row:
    texts = texts or [f"answer {k}" for k in range(len(lengths))]
    return {"responses": [{"text": t, "token_ids": [0] * n} for t, n in zip(texts, lengths, strict=True)]}


def ranking(logits: Any = None, scores: Any = None, truncated: Any = (), prompt_truncated: bool = False) -> Row:
    return {
        "logits": logits,
        "scores": scores,
        "truncated": list(truncated),
        "prompt_truncated": prompt_truncated,
        "terms": None,
    }


def test_position_bias_is_what_being_shown_first_is_worth() -> None:
    """C_12 = 3, C_21 = -1: the lead is 2, the first place is worth (3 - 1) / 2 = 1."""
    found = diagnose([row([1, 1])], [ranking([[NAN, 3.0], [-1.0, NAN]])])
    assert (found["position_bias"], found["position_bias_abs"], found["first_place_flips"]) == (1.0, 1.0, 0.0)
    found = diagnose([row([1, 1])], [ranking([[NAN, 3.0], [1.0, NAN]])])
    assert found["first_place_flips"] == 1.0, "whoever is shown first wins"


@given(st.floats(-5, 5), st.integers(2, 5), st.integers(0, 1000))
def test_a_constant_liking_for_the_first_place_is_found_whatever_the_answers(bias: float, k: int, seed: int) -> None:
    lead = np.random.default_rng(seed).normal(size=k)
    logits = [[NAN if i == j else lead[i] - lead[j] + bias for j in range(k)] for i in range(k)]
    found = diagnose([row([1] * k)], [ranking(logits)])
    assert found["position_bias"] == pytest.approx(bias, abs=1e-12)
    assert found["position_bias_abs"] == pytest.approx(abs(bias), abs=1e-12)
    assert found["intransitive_triads"] in (None, 0.0)


def test_scores_have_no_position_and_no_cycle() -> None:
    found = diagnose([row([1, 1, 1])], [ranking(scores=[1.0, 2.0, 3.0])])
    assert (found["position_bias"], found["first_place_flips"], found["intransitive_triads"]) == (None, None, 0.0)


def test_rock_paper_scissors_is_one_cycle_of_one_triad() -> None:
    found = diagnose([row([1, 1, 1])], [ranking([[NAN, 1, -1], [-1, NAN, 1], [1, -1, NAN]])])
    assert found["intransitive_triads"] == 1.0


def test_identical_answers_say_nothing_of_the_order() -> None:
    """The same text twice: C_12 = C_21 = 1 is position bias, but no winner that depends on the order."""
    found = diagnose(
        [row([1, 1, 1], ["a", "a", "b"])], [ranking([[NAN, 1.0, 3.0], [1.0, NAN, 3.0], [-1.0, -1.0, NAN]])]
    )
    assert found["first_place_flips"] == 0.0
    assert found["position_bias"] == 1.0


def test_what_was_cut_off_and_what_is_identical_is_counted() -> None:
    rows = [row([1, 2, 1], ["a", "b", "a"]), row([5, 5], ["a", "a"])]
    rankings = [
        ranking(scores=[1, 2, 1], truncated=[True, False, True]),
        ranking(scores=[0, 0], truncated=[False, False], prompt_truncated=True),
    ]
    found = diagnose(rows, rankings)
    assert (found["prompts"], found["answers"]) == (2, 5)
    assert (found["truncated_answers"], found["truncated_prompts"], found["identical_answers"]) == (2, 1, 2)


def test_length_correlation_is_within_prompts() -> None:
    """Longer wins within each prompt, though the prompt of long answers has low scores: r is +1, not negative."""
    rows = [row([1, 2, 3]), row([101, 102, 103])]
    rankings = [ranking(scores=[10.0, 11.0, 12.0]), ranking(scores=[0.0, 1.0, 2.0])]
    assert diagnose(rows, rankings)["length_correlation"] == pytest.approx(1.0)
    assert diagnose(rows[:1], [ranking(scores=[3.0, 2.0, 1.0])])["length_correlation"] == pytest.approx(-1.0)


def test_where_nothing_can_be_said_nothing_is_said() -> None:
    found = diagnose([row([3])], [ranking(scores=[1.0])])
    assert found["first_place_flips"] is found["length_correlation"] is found["intransitive_triads"] is None


def test_verdicts_and_tokens_of_a_judge_are_summed() -> None:
    terms = [
        {"name": "malformed_verdicts", "values": [0.5, 0.5]},
        {"name": "judge_input_tokens", "values": [30.0, 12.0]},
    ]
    found = diagnose([row([1, 1])] * 2, [ranking(scores=[1.0, 1.0]) | {"terms": terms}] * 2)
    assert (found["malformed_verdicts"], found["judge_input_tokens"], found["judge_output_tokens"]) == (2.0, 84.0, None)
    assert diagnose([row([1, 1])], [ranking(scores=[1.0, 1.0])])["malformed_verdicts"] is None
