"""Evaluation: win rates with their intervals, and what a win rate can hide."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answer_rows import answered, written
from scipy import special

from src import records
from src.evaluation.held_out import EVALUATION, HeldOutEvaluation, mean_interval
from src.evaluation.quality import Quality
from src.records import Row
from src.win_probability import Estimator

NAMES = ("current", "previous", "base", "null")
NAN = float("nan")
PAIRWISE = Estimator(kind="pairwise", include_self=True, opponents="all", tau=1.0)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def scored(prompt: int, score: float, **terms: float) -> Row:
    named = [{"name": name, "values": [value]} for name, value in terms.items()]
    return {"prompt_id": f"p{prompt}", "logits": None, "scores": [score], "truncated": [False], "terms": named}


def evaluate(
    folder: Path,
    answers: dict[str, list[Row]],
    rankings: list[list[Row]],
    confidence: float = 0.95,
    estimator: Estimator = PAIRWISE,
) -> tuple[dict[str, Any], list[Row]]:
    """Metrics and rows of the stage on made-up artifacts."""
    inputs = [written(folder / name, answers[name], records.RESPONSES) for name in NAMES]
    inputs += [written(folder / f"ranking{i}", rows, records.RANKING) for i, rows in enumerate(rankings)]
    (folder / "out").mkdir()
    HeldOutEvaluation(confidence=confidence, estimator=estimator)(*inputs, out=folder / "out")
    text = (folder / "out" / "metrics.json").read_text()
    assert "NaN" not in text, "other programs read it, too"
    return json.loads(text), records.read_rows(folder / "out", EVALUATION)


SCORES = {  # of each policy's answer to three prompts
    "current": [1.0, 2.0, 0.5],
    "previous": [1.0, 1.0, 1.5],
    "base": [0.0, 2.0, 1.5],
    "null": [0.0, 3.0, -0.5],
}
PLAIN = {name: [answered(p, f"{name} text") for p in range(3)] for name in NAMES}
SCALAR = [[scored(p, score) for p, score in enumerate(SCORES[name])] for name in NAMES]


def test_win_rates_are_means_of_sigma_of_score_differences_prompt_by_prompt(tmp_path: Path) -> None:
    """Current minus base: 1, 0, -1; minus previous: 0, 1, -1; null minus base: 0, 1, -2."""
    metrics, rows = evaluate(tmp_path, PLAIN, SCALAR)
    assert [row["prompt_id"] for row in rows] == ["p0", "p1", "p2"]
    assert [row["win_over_base"] for row in rows] == pytest.approx([sigma(1), 0.5, sigma(-1)])
    assert [row["win_over_previous"] for row in rows] == pytest.approx([0.5, sigma(1), sigma(-1)])
    assert [row["null_win"] for row in rows] == pytest.approx([0.5, sigma(1), sigma(-2)])
    assert metrics["win_over_base"] == pytest.approx(0.5)
    assert metrics["null_win"] == pytest.approx((0.5 + sigma(1) + sigma(-2)) / 3)
    assert metrics["prompts"] == 3


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_intervals_are_students_by_the_textbook(confidence: float, tmp_path: Path) -> None:
    """mean +- t_{n-1} s / sqrt(n), s^2 the unbiased variance of the prompts' own win probabilities."""
    metrics, rows = evaluate(tmp_path, PLAIN, SCALAR, confidence)
    for name in ("win_over_base", "win_over_previous", "null_win"):
        values = [row[name] for row in rows]
        mean = sum(values) / 3
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 2)
        half = special.stdtrit(2, (1 + confidence) / 2) * deviation / math.sqrt(3)
        assert metrics[f"{name}_low"] == pytest.approx(mean - half)
        assert metrics[f"{name}_high"] == pytest.approx(mean + half)


def test_of_two_values_the_95_percent_interval_is_12706_standard_errors() -> None:
    """Values 0.4 and 0.6: mean 0.5, standard error 0.1; t_1(.975) = 12.706 by any table."""
    assert mean_interval(np.array([0.4, 0.6]), 0.95) == pytest.approx((0.5 - 1.2706, 0.5 + 1.2706), abs=1e-4)


def test_one_value_says_nothing_and_equal_values_are_a_point() -> None:
    assert mean_interval(np.array([0.7]), 0.95) == (0.0, 1.0)
    assert mean_interval(np.full(9, 0.5), 0.95) == (0.5, 0.5)


def test_the_interval_of_fair_coins_holds_a_half_as_often_as_it_says() -> None:
    """400 experiments of 128 prompts: 95% +- 1.1% (one sd) of the intervals hold the truth."""
    chance = np.random.default_rng(0)
    intervals = [mean_interval(chance.beta(2, 2, 128), 0.95) for _ in range(400)]
    assert 0.91 < np.mean([low <= 0.5 <= high for low, high in intervals]) < 0.98


def joint(prompt: int, scores: list[float], **terms: list[float]) -> Row:
    """A ranking of four answers at once with logits C_ij = s_i - s_j + 3: what is seen first is liked more."""
    logits = [[NAN if i == j else a - b + 3 for j, b in enumerate(scores)] for i, a in enumerate(scores)]
    named = [{"name": name, "values": values} for name, values in terms.items()]
    return {"prompt_id": f"p{prompt}", "logits": logits, "scores": None, "truncated": [False] * 4, "terms": named}


def test_one_joint_ranking_says_what_four_scalar_ones_say(tmp_path: Path) -> None:
    """(C_ij - C_ji) / 2 = s_i - s_j: the liking for the first place goes out."""
    together = [joint(p, [SCORES[name][p] for name in NAMES]) for p in range(3)]
    metrics, rows = evaluate(tmp_path / "joint", PLAIN, [together])
    other, other_rows = evaluate(tmp_path / "scalar", PLAIN, SCALAR)
    wins = [name for name in metrics if "win" in name]
    assert len(wins) == 9
    assert [metrics[name] for name in wins] == pytest.approx([other[name] for name in wins])
    for row, other_row in zip(rows, other_rows, strict=True):
        assert row["win_over_previous"] == pytest.approx(other_row["win_over_previous"])


def test_a_joint_ranking_is_read_with_the_estimator_of_the_pairs(tmp_path: Path) -> None:
    """score: s_i = mean_j (C_ij - C_ji), the sum of both orders, so twice the difference."""
    together = [joint(p, [SCORES[name][p] for name in NAMES]) for p in range(3)]
    _, rows = evaluate(tmp_path, PLAIN, [together], estimator=replace(PAIRWISE, kind="score"))
    assert [row["win_over_base"] for row in rows] == pytest.approx([sigma(2), 0.5, sigma(-2)])


def test_the_temperature_holds_for_answers_ranked_apart_and_together(tmp_path: Path) -> None:
    """Current minus base: 1, 0, -1, halved. What counts for win rates over the policy counts for no single duel."""
    half = replace(PAIRWISE, tau=2.0, include_self=False, opponents="pair")
    together = [joint(p, [SCORES[name][p] for name in NAMES]) for p in range(3)]
    for name, rankings in (("apart", SCALAR), ("joint", [together])):
        _, rows = evaluate(tmp_path / name, PLAIN, rankings, estimator=half)
        assert [row["win_over_base"] for row in rows] == pytest.approx([sigma(0.5), 0.5, sigma(-0.5)])


def test_terms_of_a_joint_ranking_go_to_the_policy_they_belong_to(tmp_path: Path) -> None:
    """Relevance of current, previous, base and null: .1, .2, .3, .4."""
    together = [joint(p, [0.0] * 4, relevance=[0.1, 0.2, 0.3, 0.4]) for p in range(3)]
    metrics, _ = evaluate(tmp_path, PLAIN, [together])
    assert metrics["relevance"] == pytest.approx(0.1)
    assert metrics["base_relevance"] == pytest.approx(0.3)


# What a win rate can hide ------------------------------------------------------------------------------------------

SEEN, UNSEEN = {"kind": "words_at_most", "n": 2}, {"kind": "has_digit"}
CHECKS = [[SEEN, UNSEEN], [UNSEEN, SEEN, SEEN], []]


def test_check_accuracies_are_over_single_checks_of_seen_and_of_unseen_kinds(tmp_path: Path) -> None:
    """Seen: 1 of 1, 0 of 2. Unseen: 0 of 1, 1 of 1. The base keeps all."""
    texts = ["two words", "this has 4 words"]
    answers = dict(PLAIN)
    answers["current"] = [answered(p, text, CHECKS[p]) for p, text in enumerate([*texts, "free"])]
    answers["base"] = [answered(p, "digit 7", CHECKS[p]) for p in range(3)]
    metrics, rows = evaluate(tmp_path, answers, SCALAR)
    assert (metrics["seen_checks"], metrics["unseen_checks"]) == (3, 2)
    assert metrics["seen_accuracy"] == pytest.approx(1 / 3)
    assert metrics["unseen_accuracy"] == pytest.approx(1 / 2)
    assert (metrics["base_seen_accuracy"], metrics["base_unseen_accuracy"]) == (1, 1)
    assert [row["seen_kept"] for row in rows] == [1, 0, 0]
    assert [row["unseen_kept"] for row in rows] == [0, 1, 0]


def test_without_any_check_an_accuracy_is_no_number(tmp_path: Path) -> None:
    metrics, _ = evaluate(tmp_path, PLAIN, SCALAR)
    assert metrics["seen_accuracy"] is None and metrics["seen_checks"] == 0


def test_length_ends_and_repetition_are_means_over_the_prompts(tmp_path: Path) -> None:
    texts = [("a b c", "stop"), ("a a a a", "length"), (" ", "stop")]
    answers = dict(PLAIN) | {"current": [answered(p, text, finish=end) for p, (text, end) in enumerate(texts)]}
    metrics, rows = evaluate(tmp_path, answers, SCALAR)
    assert metrics["tokens"] == pytest.approx((5 + 7 + 1) / 3)  # a token a character here
    assert metrics["words"] == pytest.approx((3 + 4 + 0) / 3)
    assert metrics["finished"] == pytest.approx(2 / 3)
    assert metrics["empty"] == pytest.approx(1 / 3)
    assert metrics["repetition"] == pytest.approx((0 + 1 / 2 + 0) / 3)  # aaa twice
    assert {name for name in Quality if name not in rows[0]} == set()


def test_a_rankers_own_terms_are_shown_of_the_policy_and_of_the_base(tmp_path: Path) -> None:
    rankings = [list(rows) for rows in SCALAR]
    rankings[0] = [scored(p, 0.0, relevance=0.1 * p, pmi=1.0, echo=0.0) for p in range(3)]
    rankings[2] = [scored(p, 0.0, relevance=0.5, pmi=2.0, echo=0.25) for p in range(3)]
    metrics, _ = evaluate(tmp_path, PLAIN, rankings)
    assert [metrics[name] for name in ("relevance", "pmi", "echo")] == pytest.approx([0.1, 1.0, 0.0])
    assert [metrics[f"base_{name}"] for name in ("relevance", "pmi", "echo")] == pytest.approx([0.5, 2.0, 0.25])
