"""From logits or scores to win probabilities, and from those to one pair a prompt.

Run: python -m pytest -q tests/test_pairing.py
"""

from __future__ import annotations

import json
import math
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from src import records
from src.config import UserError
from src.pairing import BestWorst
from src.records import Row
from src.win_probability import Estimator, expit, intransitive_triads, win_matrix, win_rates

ESTIMATORS: tuple[Estimator, ...] = ("pairwise", "score")
NAN = float("nan")
estimators = st.sampled_from(ESTIMATORS)
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


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Win probabilities -------------------------------------------------------------------------------------------------


@given(rankings(), estimators)
def test_both_directions_sum_to_one_and_an_answer_ties_with_itself(ranking: Row, estimator: Estimator) -> None:
    matrix = win_matrix(ranking, estimator)
    np.testing.assert_allclose(matrix + matrix.T, 1, rtol=0, atol=1e-15)
    assert (np.diag(matrix) == 0.5).all()
    assert ((matrix >= 0) & (matrix <= 1)).all()


@given(rankings(), estimators)
def test_win_rates_sum_to_half_the_answers_and_stay_within_their_bounds(ranking: Row, estimator: Estimator) -> None:
    """An answer beats itself half the time, so K sure wins would be (K - 1 + 1/2) / K = 1 - 1/2K."""
    wins = win_rates(win_matrix(ranking, estimator))
    k = len(wins)
    assert wins.sum() == pytest.approx(k / 2, abs=1e-12)
    assert wins.min() >= 1 / (2 * k) - 1e-15
    assert wins.max() <= 1 - 1 / (2 * k) + 1e-15


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_with_five_answers_the_bounds_are_a_tenth_and_nine_tenths(estimator: Estimator) -> None:
    wins = win_rates(win_matrix(scalar([1e6, 0, 0, 0, -1e6]), estimator))
    assert wins.tolist() == pytest.approx([0.9, 0.5, 0.5, 0.5, 0.1], abs=0)


def test_pairwise_is_the_mean_of_both_orders_of_showing() -> None:
    """C_12 = 3, C_21 = -1: the first answer leads by 3 shown first and by 1 shown second, by 2 on average."""
    logits = [[NAN, 3.0, 0.5], [-1.0, NAN, -2.0], [0.1, 4.0, NAN]]
    matrix = win_matrix(matrix_of(logits), "pairwise")
    expected = {(0, 1): (3.0 + 1.0) / 2, (0, 2): (0.5 - 0.1) / 2, (1, 2): (-2.0 - 4.0) / 2}
    for (i, j), lead in expected.items():
        assert matrix[i, j] == pytest.approx(sigma(lead), rel=1e-12)


def test_the_score_estimator_is_bradley_terry_on_mean_leads() -> None:
    """s_i = mean over all three of C_ij - C_ji, its own 0 included."""
    logits = [[NAN, 3.0, 0.5], [-1.0, NAN, -2.0], [0.1, 4.0, NAN]]
    scores = [(0 + 4.0 + 0.4) / 3, (-4.0 + 0 - 6.0) / 3, (-0.4 + 6.0 + 0) / 3]
    matrix = win_matrix(matrix_of(logits), "score")
    for i in range(3):
        for j in range(3):
            assert matrix[i, j] == pytest.approx(sigma(scores[i] - scores[j]), rel=1e-12)


@given(numbers, numbers)
def test_of_two_answers_the_score_estimator_says_twice_the_logit(c12: float, c21: float) -> None:
    """d = C_12 - C_21. pairwise: d / 2. score: s_1 = d / 2, s_2 = -d / 2, so s_1 - s_2 = d."""
    ranking, d = matrix_of([[NAN, c12], [c21, NAN]]), c12 - c21
    assert win_matrix(ranking, "pairwise")[0, 1] == pytest.approx(sigma(d / 2), rel=1e-9)
    assert win_matrix(ranking, "score")[0, 1] == pytest.approx(sigma(d), rel=1e-9)


@given(st.lists(numbers, min_size=2, max_size=6))
def test_scores_are_read_alike_by_both_estimators_and_only_differences_count(scores: list[float]) -> None:
    one, two = (win_matrix(scalar(scores), estimator) for estimator in ESTIMATORS)
    assert (one == two).all()
    np.testing.assert_allclose(win_matrix(scalar([s + 7 for s in scores]), "score"), one, atol=1e-12)


def test_expit_does_not_overflow() -> None:
    assert expit(np.array([-1e9, 0.0, 1e9])).tolist() == [0.0, 0.5, 1.0]


@given(rankings(), estimators)
def test_intransitive_triads_are_those_found_by_trying_all(ranking: Row, estimator: Estimator) -> None:
    matrix = win_matrix(ranking, estimator)
    triads = list(combinations(range(len(matrix)), 3))

    def is_cycle(triad: tuple[int, ...]) -> bool:
        return any(all(matrix[a, b] > 0.5 for a, b in ((i, j), (j, k), (k, i))) for i, j, k in permutations(triad))

    assert intransitive_triads(matrix) == (sum(map(is_cycle, triads)), len(triads))


def test_rock_paper_scissors_is_one_cycle_and_scores_have_none() -> None:
    game = matrix_of([[NAN, 1, -1], [-1, NAN, 1], [1, -1, NAN]])
    assert intransitive_triads(win_matrix(game, "pairwise")) == (1, 1)
    assert intransitive_triads(win_matrix(scalar([3, 1, 2, 0]), "pairwise")) == (0, 4)


# Pairs -------------------------------------------------------------------------------------------------------------


def stage(drop_identical: bool = True) -> BestWorst:
    return BestWorst(estimator="pairwise", drop_identical=drop_identical)


def answer(ids: list[int]) -> Row:
    return {"text": "", "token_ids": ids, "finish_reason": "stop", "seed": 0, "source": f"from {ids}"}


def responses(prompt_id: str, answers: list[list[int]]) -> Row:
    prompt = {"prompt_id": prompt_id, "messages": [], "source": "", "checks": "[]", "prompt_token_ids": [7]}
    return prompt | {"responses": [answer(ids) for ids in answers]}


def pair_up(folder: Path, prompts: list[tuple[list[list[int]], Row]], **options: bool) -> tuple[list[Row], Any]:
    """Run the stage on (answers, ranking) of each prompt; its rows and metrics."""
    rows = [responses(f"p{i}", answers) for i, (answers, _) in enumerate(prompts)]
    ranked = [
        ranking | {"prompt_id": f"p{i}", "truncated": [], "terms": None} for i, (_, ranking) in enumerate(prompts)
    ]
    places = [folder / name for name in ("responses", "ranking", "out")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    records.write_rows(places[0], rows, records.RESPONSES)
    records.write_rows(places[1], reversed(ranked), records.RANKING)  # found by prompt, not by place
    stage(**options)(places[0], places[1], out=places[2])
    return records.read_rows(places[2], records.PAIRS), json.loads((places[2] / "metrics.json").read_text())


def test_the_best_is_chosen_the_worst_rejected_with_their_probabilities(tmp_path: Path) -> None:
    """Scores 0, 2, 1: wins (1/2 + s(-2) + s(-1)) / 3, (1/2 + s(2) + s(1)) / 3, 1/2."""
    (pair,), metrics = pair_up(tmp_path, [([[1], [2, 2], [3]], scalar([0.0, 2.0, 1.0]))])
    assert (pair["chosen_token_ids"], pair["rejected_token_ids"], pair["prompt_token_ids"]) == ([2, 2], [1], [7])
    assert (pair["chosen_index"], pair["rejected_index"]) == (1, 0)
    assert (pair["chosen_source"], pair["rejected_source"]) == ("from [2, 2]", "from [1]")
    assert pair["chosen_win"] == pytest.approx((0.5 + sigma(2) + sigma(1)) / 3)
    assert pair["rejected_win"] == pytest.approx((0.5 + sigma(-2) + sigma(-1)) / 3)
    assert pair["chosen_beats_rejected"] == pytest.approx(sigma(2))
    assert metrics["chosen_win"] == pair["chosen_win"]
    assert (metrics["prompts"], metrics["pairs"], metrics["identical_left_out"]) == (1, 1, 0)
    assert (metrics["chosen_tokens"], metrics["rejected_tokens"], metrics["intransitive_triads"]) == (2, 1, 0)


@given(ranking=rankings())
def test_the_chosen_win_rate_is_never_below_the_rejected(
    tmp_path_factory: pytest.TempPathFactory, ranking: Row
) -> None:
    k = len(ranking["scores"] or ranking["logits"])
    (pair,), _ = pair_up(tmp_path_factory.mktemp("p"), [([[i] for i in range(k)], ranking)])
    wins = win_rates(win_matrix(ranking, "pairwise"))
    assert pair["chosen_win"] == wins.max() >= wins.min() == pair["rejected_win"]
    assert pair["chosen_index"] != pair["rejected_index"]


@given(st.permutations(range(5)), st.lists(st.integers(-40, 40), min_size=5, max_size=5, unique=True), estimators)
def test_answers_in_another_order_are_the_same_pair(order: list[int], scores: list[int], estimator: Estimator) -> None:
    """Directed logits C_ij = s_i - 2 s_j, so that both orders matter. No ties: scores differ by a tenth at least."""
    s = np.array(scores) / 10
    logits = s[:, None] - 2 * s[None, :]
    wins = win_rates(win_matrix(matrix_of(logits.tolist()), estimator))
    assume(np.diff(np.sort(wins)).min() > 1e-9)
    moved = win_rates(win_matrix(matrix_of(logits[np.ix_(order, order)].tolist()), estimator))
    np.testing.assert_allclose(moved, wins[order], atol=1e-12)
    assert order[int(moved.argmax())] == int(wins.argmax())
    assert order[int(moved.argmin())] == int(wins.argmin())


def test_ties_go_to_the_lower_index_and_still_are_two_answers(tmp_path: Path) -> None:
    answers = [[1], [2], [3], [4]]
    pairs, _ = pair_up(tmp_path, [(answers, scalar([0.0] * 4)), (answers, scalar([1.0, 0.0, 1.0, 0.0]))])
    assert [(p["chosen_index"], p["rejected_index"]) for p in pairs] == [(0, 1), (0, 1)]


SAME, OTHER = ([[1, 2], [1, 2]], scalar([1.0, 0.0])), ([[1], [2]], scalar([0.0, 1.0]))


def test_identical_answers_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, metrics = pair_up(tmp_path, [SAME, OTHER, SAME])
    assert [p["prompt_id"] for p in pairs] == ["p1"]
    assert (metrics["prompts"], metrics["pairs"], metrics["identical_left_out"]) == (3, 1, 2)
    assert "2 of 3 prompts have identical answers" in capsys.readouterr().out
    assert metrics["chosen_win"] == pytest.approx((0.5 + sigma(1)) / 2)


def test_identical_answers_are_kept_where_the_config_says_so(tmp_path: Path) -> None:
    pairs, metrics = pair_up(tmp_path, [SAME, OTHER], drop_identical=False)
    assert (len(pairs), metrics["pairs"], metrics["identical_left_out"]) == (2, 2, 0)


def test_nothing_but_identical_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="identical; raise sampling.temperature"):
        pair_up(tmp_path, [SAME, SAME])


def test_cycles_are_reported_as_a_share_of_all_triads(tmp_path: Path) -> None:
    """One prompt is rock, paper, scissors (1 of 1), one is not (0 of 1)."""
    game = matrix_of([[NAN, 1, -1], [-1, NAN, 1], [1, -1, NAN]])
    _, metrics = pair_up(tmp_path, [([[1], [2], [3]], game), ([[1], [2], [3]], scalar([1.0, 2.0, 3.0]))])
    assert metrics["intransitive_triads"] == 0.5
