"""Laws of what is made of a ranker's word: equivariance, order, bounds, and which pairs are kept."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from made_up_rankings import NAN, numbers, rankings, scalar
from tiny_run import ROOT, typed

from src.pairing.candidates import candidates
from src.pairing.filters import Filters
from src.pairing.rules import Rule
from src.pairing.stage import Pair
from src.records import Row
from src.training.lengths import Lengths
from src.win_probability import Estimator, exact_means, intransitive_triads, lead

RULES: dict[str, Rule] = {
    path.stem: typed(f"pairing={path.stem}").pairing.rule for path in sorted((ROOT / "conf" / "pairing").glob("*.yaml"))
}
estimators = st.builds(
    Estimator,
    kind=st.sampled_from(["pairwise", "score"]),
    include_self=st.booleans(),
    opponents=st.sampled_from(["all", "pair"]),
    tau=st.sampled_from([0.25, 1.0, 3.0]),
)
DEFAULT = typed()
scores = st.lists(numbers, min_size=2, max_size=7)


# Win probabilities -------------------------------------------------------------------------------------------------


def moved(ranking: Row, order: list[int]) -> Row:
    """The same word of the same answers in another order."""
    return {
        "scores": ranking["scores"] and [ranking["scores"][i] for i in order],
        "logits": ranking["logits"] and [[ranking["logits"][i][j] for j in order] for i in order],
    }


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
    np.testing.assert_allclose(estimator.win_rates(other), estimator.win_rates(matrix)[order], rtol=0, atol=1e-14)
    assert intransitive_triads(lead(moved(ranking, order))) == intransitive_triads(lead(ranking))


@given(scores, estimators, st.data())
def test_a_higher_score_lowers_nobody_elses_loss_and_raises_its_own_win_rate(
    given_scores: list[float], estimator: Estimator, data: st.DataObject
) -> None:
    raised = data.draw(st.integers(0, len(given_scores) - 1))
    by = data.draw(st.floats(0.1, 5))
    before = estimator.matrix(scalar(given_scores))
    after = estimator.matrix(scalar([s + by * (i == raised) for i, s in enumerate(given_scores)]))
    others = [i for i in range(len(given_scores)) if i != raised]
    assert (after[raised, others] >= before[raised, others]).all()
    assert (after[np.ix_(others, others)] == before[np.ix_(others, others)]).all()
    wins = [estimator.win_rates(matrix) for matrix in (before, after)]
    assert wins[1][raised] >= wins[0][raised]
    assert all(wins[1][i] <= wins[0][i] + 1e-15 for i in others)


@given(scores, estimators)
def test_win_rates_are_in_the_order_of_the_scores(given_scores: list[float], estimator: Estimator) -> None:
    wins = exact_means(estimator.matrix(scalar(given_scores)))
    for one, score in enumerate(given_scores):
        for other, lower in enumerate(given_scores):
            assert score < lower or wins[one] >= wins[other] - 1e-15


@given(rankings(), st.floats(1, 20), estimators)
def test_a_colder_reading_is_further_from_a_half(ranking: Row, factor: float, estimator: Estimator) -> None:
    """A temperature moves no answer past another: it draws every probability to or from 1/2."""
    colder = dataclasses.replace(estimator, tau=estimator.tau / factor)
    before, after = estimator.matrix(ranking) - 0.5, colder.matrix(ranking) - 0.5
    assert (before * after >= 0).all()
    assert (np.abs(after) >= np.abs(before) - 1e-15).all()


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6), estimators)
def test_no_sane_score_gives_certainty(given_scores: list[float], estimator: Estimator) -> None:
    """Within (0, 1): what an SPPO target of eta (P - 1/2) is made of. sigma is 1 in doubles from 37 on."""
    spread = (max(given_scores) - min(given_scores)) * (2 if estimator.kind == "score" else 1) / estimator.tau
    assume(spread < 36)
    matrix = estimator.matrix(scalar(given_scores))
    assert ((matrix > 0) & (matrix < 1)).all()
    assert all(0 < one < 1 for one in estimator.of_pair(matrix, 0, 1))


# Pairs -------------------------------------------------------------------------------------------------------------


@st.composite
def answered(draw: Any) -> tuple[Row, Row]:
    """A RESPONSES and a RANKING row of few contents, so that many are the same and many are tied."""
    ids = draw(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=3), min_size=2, max_size=6))
    own = {"finish_reason": "stop", "seed": 0, "source": "policy"}
    answers = [own | {"token_ids": one, "text": " ".join(map(str, one))} for one in ids]
    said = {
        "prompt_id": "p",
        "scores": draw(st.lists(st.integers(1, 6).map(float), min_size=len(ids), max_size=len(ids))),
    }
    return {"prompt_id": "p", "prompt_token_ids": [1], "responses": answers}, said | {"logits": None, "terms": None}


limits = st.builds(
    lambda **own: Filters(**(vars(DEFAULT.pairing.filters) | own)),
    drop_identical=st.booleans(),
    min_margin=st.none() | st.sampled_from([0.0, 0.1, 0.3]),
    max_length_gap=st.none() | st.sampled_from([1, 2]),
)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@given(rows=answered(), estimator=estimators, filters=limits)
def test_a_pair_is_of_two_places_its_own_answers_and_within_the_filters(
    rule: Rule, rows: tuple[Row, Row], estimator: Estimator, filters: Filters
) -> None:
    row, ranking = rows
    stage = Pair(rule=rule, filters=filters, estimator=estimator, seed=0)
    matrix = estimator.matrix(ranking)
    for pair, reason in stage._pairs(row, ranking, matrix):
        chosen, rejected = pair["chosen_index"], pair["rejected_index"]
        assert chosen != rejected
        assert pair["chosen_token_ids"] == row["responses"][chosen]["token_ids"]
        assert pair["rejected_token_ids"] == row["responses"][rejected]["token_ids"]
        assert pair["chosen_beats_rejected"] == matrix[chosen, rejected]
        assert 0 <= pair["rejected_win"] <= pair["chosen_win"] + 1e-12 <= 1 + 1e-12
        if reason is None and filters.drop_identical:
            assert row["responses"][chosen]["text"] != row["responses"][rejected]["text"]
        if reason is None and filters.min_margin is not None:
            assert pair["chosen_win"] - pair["rejected_win"] >= filters.min_margin
        if reason is None and filters.max_length_gap is not None:
            lengths = [len(pair[f"{side}_token_ids"]) for side in ("chosen", "rejected")]
            assert abs(lengths[0] - lengths[1]) <= filters.max_length_gap


@given(answered(), st.integers(0, 2**31), st.data())
def test_draws_are_distinct_and_move_with_their_answers(rows: tuple[Row, Row], seed: int, data: st.DataObject) -> None:
    row, ranking = rows
    found = candidates(row, ranking, DEFAULT.estimator.matrix(ranking), seed)
    assert len({*found.ties, *found.lots}) == 2 * len(row["responses"])
    order = data.draw(st.permutations(range(len(row["responses"]))))
    other = row | {"responses": [row["responses"][i] for i in order]}
    again = candidates(
        other, moved(ranking, order) | {"terms": None}, DEFAULT.estimator.matrix(moved(ranking, order)), seed
    )
    own = [
        [(found.texts[i], found.ties[i]) for i in range(len(order))],
        list(zip(again.texts, again.ties, strict=True)),
    ]
    assert sorted(own[0]) == sorted(own[1])


# What training keeps of a pair -------------------------------------------------------------------------------------

tokens = st.lists(st.integers(0, 9), max_size=30)


@given(tokens, tokens.filter(bool), tokens.filter(bool), st.integers(1, 20), st.integers(1, 20), st.booleans())
@example([], [1], [2], 1, 1, True)
def test_truncation_keeps_ends_of_prompts_and_beginnings_of_answers(
    prompt: list[int], chosen: list[int], rejected: list[int], most: int, room: int, joint: bool
) -> None:
    lengths = Lengths(max_prompt=most, max_total=most + room, truncation="joint" if joint else "separate")
    found = lengths.fit(prompt, chosen, rejected)
    assert prompt[len(prompt) - len(found.prompt) :] == found.prompt
    for whole, kept in ((chosen, found.chosen), (rejected, found.rejected)):
        assert kept and whole[: len(kept)] == kept
        assert len(found.prompt) + len(kept) <= lengths.max_total
    fits = [len(prompt) + len(answer) <= lengths.max_total for answer in (chosen, rejected)]
    if all(fits) and (joint or len(prompt) <= most):
        assert found == (prompt, chosen, rejected), "nothing is cut of what fits"
    if not joint:
        assert len(found.prompt) == min(len(prompt), most)


def test_a_nan_diagonal_is_no_word_of_the_ranker() -> None:
    """The laws above would pass where NaN came through: NaN compares as nothing."""
    matrix = Estimator(kind="score", include_self=True, opponents="all", tau=1.0).matrix(
        {"scores": None, "logits": [[NAN, 1.0], [0.0, NAN]]}
    )
    assert not any(map(math.isnan, matrix.ravel()))
