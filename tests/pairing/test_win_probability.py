"""Laws of the estimators of win probabilities; test_faithful.py has their equations."""

from __future__ import annotations

import dataclasses
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_rankings import moved, rankings

from src.kernel.rows import Row
from src.pairing.win_probability import Estimator, exact_means, intransitive_triads, lead

estimators = st.builds(
    Estimator,
    kind=st.sampled_from(["pairwise", "score"]),
    include_self=st.booleans(),
    opponents=st.sampled_from(["all", "pair"]),
    tau=st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0]),
)


# One answer against another ---------------------------------------------------------------------------------------


@given(rankings(), estimators)
def test_both_directions_sum_to_one_and_an_answer_ties_with_itself(ranking: Row, estimator: Estimator) -> None:
    matrix = estimator.matrix(ranking)
    np.testing.assert_allclose(matrix + matrix.T, 1, rtol=0, atol=1e-15)
    assert (np.diag(matrix) == 0.5).all()
    assert ((matrix >= 0) & (matrix <= 1)).all()


@given(rankings(), estimators)
def test_the_temperature_divides_what_the_ranker_says(ranking: Row, estimator: Estimator) -> None:
    """Scores and logits divided by tau, read at tau 1, are scores and logits read at tau."""
    divided = {
        "scores": ranking["scores"] and [s / estimator.tau for s in ranking["scores"]],
        "logits": ranking["logits"] and [[c / estimator.tau for c in row] for row in ranking["logits"]],
    }
    plain = dataclasses.replace(estimator, tau=1.0)
    np.testing.assert_allclose(estimator.matrix(ranking), plain.matrix(divided), rtol=1e-9)


@given(rankings(), estimators, st.data())
def test_answers_in_another_order_have_the_same_probabilities_in_that_order(
    ranking: Row, estimator: Estimator, data: st.DataObject
) -> None:
    """To the last bit: sums are rounded once, so what is best and what is tied depends on no order."""
    matrix = estimator.matrix(ranking)
    order = data.draw(st.permutations(range(len(matrix))))
    other = estimator.matrix(moved(ranking, order))
    assert (other == matrix[np.ix_(order, order)]).all()
    assert (exact_means(other) == exact_means(matrix)[order]).all()
    np.testing.assert_allclose(exact_means(matrix), matrix.mean(1), rtol=0, atol=1e-14)
    np.testing.assert_allclose(estimator.win_rates(other), estimator.win_rates(matrix)[order], rtol=0, atol=1e-14)
    assert intransitive_triads(lead(moved(ranking, order))) == intransitive_triads(lead(ranking))


# An answer against the policy -------------------------------------------------------------------------------------


@given(rankings(), estimators)
def test_win_rates_sum_to_half_the_answers_and_stay_within_their_bounds(ranking: Row, estimator: Estimator) -> None:
    """An answer beats itself half the time, so K sure wins would be (K - 1 + 1/2) / K = 1 - 1/2K; else 1.
    Counting itself only draws a win rate to a half: K w = 1/2 + (K - 1) w', so w - 1/2 = (K - 1) / K (w' - 1/2).
    """
    matrix = estimator.matrix(ranking)
    wins, k = estimator.win_rates(matrix), len(matrix)
    edge = 1 / (2 * k) if estimator.include_self else 0
    assert wins.sum() == pytest.approx(k / 2, abs=1e-12)
    assert wins.min() >= edge - 1e-15 and wins.max() <= 1 - edge + 1e-15
    with_it, without = (dataclasses.replace(estimator, include_self=say).win_rates(matrix) for say in (True, False))
    np.testing.assert_allclose(with_it - 0.5, (k - 1) / k * (without - 0.5), atol=1e-14)


@given(rankings(), estimators, st.data())
def test_a_pair_has_the_win_rates_of_its_answers(ranking: Row, estimator: Estimator, data: st.DataObject) -> None:
    """Over the two alone: (1/2 + P(w > l)) / 2 with itself counted, P(w > l) without."""
    matrix = estimator.matrix(ranking)
    chosen, rejected = data.draw(st.permutations(range(len(matrix))))[:2]
    wins, p = estimator.of_pair(matrix, chosen, rejected), matrix[chosen, rejected]
    assert wins["chosen_beats_rejected"] == p
    if estimator.opponents == "all":
        rates = estimator.win_rates(matrix)
        assert (wins["chosen_win"], wins["rejected_win"]) == (rates[chosen], rates[rejected])
    else:
        expected = (0.5 + p) / 2 if estimator.include_self else p
        assert (wins["chosen_win"], wins["rejected_win"]) == pytest.approx((expected, 1 - expected), abs=1e-14)


# All answers ------------------------------------------------------------------------------------------------------


@given(rankings())
def test_intransitive_triads_are_those_found_by_trying_all(ranking: Row) -> None:
    ahead = lead(ranking)
    triads = list(combinations(range(len(ahead)), 3))

    def is_cycle(triad: tuple[int, ...]) -> bool:
        return any(all(ahead[a, b] > 0 for a, b in ((i, j), (j, k), (k, i))) for i, j, k in permutations(triad))

    assert intransitive_triads(ahead) == (sum(map(is_cycle, triads)), len(triads))
