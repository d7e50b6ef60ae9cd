"""The held-out evaluation: win rates with their intervals, and what a win rate can hide."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answer_rows import answered, written
from made_up_rankings import NAN, sigma
from scipy import special

from src.evaluation.held_out import EVALUATION, HeldOutEvaluation, Quality
from src.kernel.rows import RANKING, RESPONSES, Row, read_rows
from src.pairing.win_probability import Estimator

NAMES = ("current", "previous", "base", "null")
PAIRWISE = Estimator(kind="pairwise", include_self=True, opponents="all", tau=1.0)


def scored(prompt: int, score: float, **terms: float) -> Row:
    named = [{"name": name, "values": [value]} for name, value in terms.items()]
    return {"prompt_id": f"p{prompt}", "logits": None, "scores": [score], "truncated": [False], "terms": named}


def joint(prompt: int, scores: list[float], **terms: list[float]) -> Row:
    """A ranking of four answers at once with logits C_ij = s_i - s_j + 3: what is seen first is liked more."""
    logits = [[NAN if i == j else a - b + 3 for j, b in enumerate(scores)] for i, a in enumerate(scores)]
    named = [{"name": name, "values": values} for name, values in terms.items()]
    return {"prompt_id": f"p{prompt}", "logits": logits, "scores": None, "truncated": [False] * 4, "terms": named}


def evaluate(
    folder: Path,
    rankings: list[list[Row]],
    confidence: float = 0.95,
    estimator: Estimator = PAIRWISE,
    **answers: list[Row],
) -> tuple[dict[str, Any], list[Row]]:
    """Metrics and rows of the stage on made-up artifacts."""
    inputs = [written(folder / name, (PLAIN | answers)[name], RESPONSES) for name in NAMES]
    inputs += [written(folder / f"ranking{i}", rows, RANKING) for i, rows in enumerate(rankings)]
    (folder / "out").mkdir()
    HeldOutEvaluation(confidence=confidence, estimator=estimator)(*inputs, out=folder / "out")
    text = (folder / "out" / "metrics.json").read_text()
    assert "NaN" not in text, "other programs read it, too"
    return json.loads(text), read_rows(folder / "out", EVALUATION)


SCORES = {  # of each policy's answer to three prompts
    "current": [1.0, 2.0, 0.5],
    "previous": [1.0, 1.0, 1.5],
    "base": [0.0, 2.0, 1.5],
    "null": [0.0, 3.0, -0.5],
}
PLAIN = {name: [answered(p, f"{name} text") for p in range(3)] for name in NAMES}
SCALAR = [[scored(p, score) for p, score in enumerate(SCORES[name])] for name in NAMES]
JOINT = [[joint(p, [SCORES[name][p] for name in NAMES]) for p in range(3)]]


def test_win_rates_are_means_of_sigma_of_score_differences_prompt_by_prompt(tmp_path: Path) -> None:
    """Current minus base: 1, 0, -1; minus previous: 0, 1, -1; null minus base: 0, 1, -2.

    Intervals are Student's: mean ± t_{n-1} s / √n, s² the unbiased variance of the prompts' own win probabilities.
    """
    metrics, rows = evaluate(tmp_path, SCALAR, confidence=0.9)
    assert [row["prompt_id"] for row in rows] == ["p0", "p1", "p2"] and metrics["prompts"] == 3
    by_hand = {"win_over_base": [1, 0, -1], "win_over_previous": [0, 1, -1], "null_win": [0, 1, -2]}
    for name, differences in by_hand.items():
        values = list(map(sigma, differences))
        assert [row[name] for row in rows] == pytest.approx(values)
        half = special.stdtrit(2, 0.95) * np.std(values, ddof=1) / math.sqrt(3)
        expected = (np.mean(values), np.mean(values) - half, np.mean(values) + half)
        assert tuple(metrics[f"{name}{end}"] for end in ("", "_low", "_high")) == pytest.approx(expected)
    assert metrics["seen_accuracy"] is None and metrics["seen_checks"] == 0, "there are no checks"


def test_one_joint_ranking_says_what_four_scalar_ones_say(tmp_path: Path) -> None:
    """(C_ij - C_ji) / 2 = s_i - s_j: the liking for the first place goes out. The temperature holds for both.

    What counts for win rates over the policy (the estimator's other fields) counts for no single duel.
    """
    for tau in (1.0, 2.0):
        estimator = replace(PAIRWISE, tau=tau, include_self=tau == 1, opponents="all" if tau == 1 else "pair")
        metrics, rows = evaluate(tmp_path / f"joint{tau}", JOINT, estimator=estimator)
        other, _ = evaluate(tmp_path / f"scalar{tau}", SCALAR, estimator=estimator)
        wins = [name for name in metrics if "win" in name]
        assert len(wins) == 9 and [metrics[name] for name in wins] == pytest.approx([other[name] for name in wins])
        assert [row["win_over_base"] for row in rows] == pytest.approx([sigma(1 / tau), 0.5, sigma(-1 / tau)])
    # score: s_i = mean_j (C_ij - C_ji), the sum of both orders, so twice the difference.
    _, rows = evaluate(tmp_path / "score", JOINT, estimator=replace(PAIRWISE, kind="score"))
    assert [row["win_over_base"] for row in rows] == pytest.approx([sigma(2), 0.5, sigma(-2)])


def test_a_rankers_own_terms_go_to_the_policy_they_belong_to(tmp_path: Path) -> None:
    """Relevance of current, previous, base and null: .1, .2, .3, .4."""
    together = [joint(p, [0.0] * 4, relevance=[0.1, 0.2, 0.3, 0.4]) for p in range(3)]
    apart = [[scored(p, 0.0, relevance=relevance) for p in range(3)] for relevance in (0.1, 0.2, 0.3, 0.4)]
    for name, rankings in (("together", [together]), ("apart", apart)):
        metrics, _ = evaluate(tmp_path / name, rankings)
        assert (metrics["relevance"], metrics["base_relevance"]) == pytest.approx((0.1, 0.3))


def test_check_accuracies_are_over_single_checks_of_seen_and_of_unseen_kinds(tmp_path: Path) -> None:
    """Seen: 1 of 1, 0 of 2. Unseen: 0 of 1, 1 of 1. The base keeps all."""
    seen, unseen = {"kind": "words_at_most", "n": 2}, {"kind": "has_digit"}
    checks, texts = [[seen, unseen], [unseen, seen, seen], []], ["two words", "this has 4 words", "free"]
    current = [answered(p, text, checks[p]) for p, text in enumerate(texts)]
    base = [answered(p, "digit 7", checks[p]) for p in range(3)]
    metrics, rows = evaluate(tmp_path, SCALAR, current=current, base=base)
    assert (metrics["seen_checks"], metrics["unseen_checks"]) == (3, 2)
    assert (metrics["seen_accuracy"], metrics["unseen_accuracy"]) == pytest.approx((1 / 3, 1 / 2))
    assert (metrics["base_seen_accuracy"], metrics["base_unseen_accuracy"]) == (1, 1)
    assert [row["seen_kept"] for row in rows] == [1, 0, 0] and [row["unseen_kept"] for row in rows] == [0, 1, 0]


def test_length_ends_and_repetition_are_means_over_the_prompts(tmp_path: Path) -> None:
    texts = [("a b c", "stop"), ("a a a a", "length"), (" ", "stop")]
    current = [answered(p, text, finish=end) for p, (text, end) in enumerate(texts)]
    metrics, rows = evaluate(tmp_path, SCALAR, current=current)
    expected = {"tokens": (5 + 7 + 1) / 3, "words": (3 + 4 + 0) / 3, "finished": 2 / 3, "empty": 1 / 3}
    expected["repetition"] = (0 + 1 / 2 + 0) / 3  # aaa twice
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert {name for name in Quality if name not in rows[0]} == set()
