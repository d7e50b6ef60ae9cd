"""Laws of every rule of conf/pairing/, and of some rules by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up_pairs import responses
from made_up_rankings import matrix_of, moved, scalar
from tiny_run import ROOT, typed

from src.kernel.rows import Row
from src.methods.method import PairLogps
from src.methods.sppo import SPPO
from src.pairing.rules import AllAnswers, Candidates, Rule, WPOv1, candidates

NAMES = sorted(path.stem for path in (ROOT / "conf" / "pairing").glob("*.yaml"))
RULES: dict[str, Rule] = {name: typed(f"pairing={name}").pairing.rule for name in NAMES}
ESTIMATORS = {kind: typed(f"estimator={kind}").estimator for kind in ("pairwise", "score")}
V1 = WPOv1(chosen_from=5.0, gap=1.0)


@st.composite
def prompts(draw: Any) -> tuple[list[int], Row]:
    """2 to 8 answers out of a few, so that some are identical, and a ranking of these few with many ties.

    Scores are 1 to 6, as of a judge; logits are directed.
    """
    k = draw(st.integers(1, 4))
    answers = draw(st.lists(st.integers(0, k - 1), min_size=2, max_size=8))
    if draw(st.booleans()):
        return answers, scalar(draw(st.lists(st.sampled_from([1.0, 3.0, 4.5, 6.0]), min_size=k, max_size=k)))
    row = st.lists(st.sampled_from([-2.0, -0.7, 0.0, 0.3, 0.7]), min_size=k, max_size=k)
    return answers, matrix_of(draw(st.lists(row, min_size=k, max_size=k)))


def candidates_of(
    answers: list[int], ranking: Row, kind: str = "pairwise", seed: int = 0, prompt_id: str = "p"
) -> Candidates:
    """Return the candidates of a prompt; `ranking` is of answers 0, 1, … and says the same of identical ones."""
    ranked = moved(ranking, answers) | {"terms": None}
    row = responses(prompt_id, [[answer] for answer in answers])
    return candidates(row, ranked, ESTIMATORS[kind].matrix(ranked), seed)


def rules_for(ranking: Row) -> list[tuple[str, Rule]]:
    return [(name, rule) for name, rule in RULES.items() if ranking["scores"] or not rule.needs_scores]


def spread(wins: list[float], worth: list[float] | None = None) -> Candidates:
    """Return answers of these win rates; where chance decides, the lower index has the lower number."""
    k, places = len(wins), list(range(len(wins)))
    return Candidates(wins, worth or wins, [True] * k, [str(place) for place in places], [1] * k, places, places)


# Laws --------------------------------------------------------------------------------------------------------------


@given(prompts(), st.data(), st.sampled_from(sorted(ESTIMATORS)))
def test_answers_in_another_order_are_the_same_pairs(
    prompt: tuple[list[int], Row], data: st.DataObject, kind: str
) -> None:
    """Only indices move. Identical answers are interchangeable, so pairs are compared by content."""
    answers, ranking = prompt
    orders = [answers, data.draw(st.permutations(answers))]
    both = [candidates_of(order, ranking, kind) for order in orders]
    for name, rule in rules_for(ranking):
        pairs = [[(order[w], order[r]) for w, r in rule.pairs(one)] for order, one in zip(orders, both, strict=True)]
        assert pairs[0] == pairs[1], name
    assert len({*both[0].ties, *both[0].lots}) == 2 * len(answers), "no two numbers are equal"
    numbers = [sorted(zip(one.texts, one.ties, one.lots, strict=True)) for one in both]
    assert numbers[0] == numbers[1]


@given(prompts())
def test_a_pair_is_two_answers_the_chosen_no_worse_and_no_more_pairs_than_promised(
    prompt: tuple[list[int], Row],
) -> None:
    answers = candidates_of(*prompt)
    for name, rule in rules_for(prompt[1]):
        pairs = rule.pairs(answers)
        assert len(pairs) <= rule.per_prompt(len(answers.wins)), name
        values = answers.worth if name in ("best_worst", "wpo_v1", "wpo_v2") else answers.wins
        assert all(w != r and values[w] >= values[r] for w, r in pairs), name


def test_chance_depends_on_the_seed_and_on_the_prompt() -> None:
    """Of six equal answers some pair differs between 20 seeds, and between 20 prompts."""
    for name, rule in RULES.items():
        ranking, answers = scalar([5.0 if rule.needs_scores else 1.0, *[1.0] * 5]), list(range(6))
        seeds = {tuple(rule.pairs(candidates_of(answers, ranking, seed=seed))) for seed in range(20)}
        prompts = {tuple(rule.pairs(candidates_of(answers, ranking, prompt_id=f"p{n}"))) for n in range(20)}
        assert len(seeds) > 1 and len(prompts) > 1, name


def test_every_answer_that_may_be_drawn_is_drawn_as_often() -> None:
    """Four lower answers, two of them identical, in 2000 prompts: 500 each, with a standard deviation of 20."""
    prompts = [candidates_of([0, 1, 2, 3, 3], scalar([6.0, 1.0, 1.0, 1.0]), prompt_id=f"p{n}") for n in range(2000)]
    drawn = Counter(V1.pairs(answers)[0][1] for answers in prompts)
    assert set(drawn) == {1, 2, 3, 4} and max(abs(count - 500) for count in drawn.values()) < 4 * 20


# Rules by hand; test_faithful.py has WPO's --------------------------------------------------------------------------


def test_wpo_v1_passes_over_answers_without_a_verdict() -> None:
    """Their score is the mean of the others: 6 would be chosen, 4 drawn; neither was said by the judge."""
    answers = spread([6.0, 5.0, 4.0], [6.0, 5.0, 4.0])
    assert V1.pairs(answers._replace(judged=[False, True, True])) == [(1, 2)]
    assert V1.pairs(answers._replace(judged=[True, True, False])) == [(0, 1)]
    assert V1.pairs(answers._replace(judged=[False, False, True])) == []


def test_pairs_are_of_scores_or_mean_logits_and_by_name_of_win_rates() -> None:
    """Answer 0 wins once by far and loses narrowly twice: the highest mean logit, not the highest win rate.

    sigma(1000) and sigma(2000) are both 1: win rates do not tell such scores apart.
    """
    once_by_far = matrix_of([[0, -1, -1, 9], [1, 0, 0, 1], [1, 0, 0, 1], [-9, -1, -1, 0]])
    for name, chosen in {"best_worst": {0}, "wpo_v2": {0}, "win_rate": {1, 2}}.items():
        assert RULES[name].pairs(candidates_of([0, 1, 2, 3], once_by_far))[0][0] in chosen, name
    for name in ("best_worst", "wpo_v2"):
        assert RULES[name].pairs(spread([0.9, 0.5, 0.5], [3000.0, 1000.0, 0.0])) == [(0, 2)]


def test_the_mean_loss_of_all_answers_pairs_is_that_of_the_answers() -> None:
    """eq. 4.7: mean over k of (D_k - eta (P_k - 1/2))^2, for odd and even K."""
    for k in range(2, 10):
        chance = np.random.default_rng(k)
        wins, logratio, eta = chance.uniform(0.1, 0.9, k), chance.normal(0, 50, k), 100.0
        chosen, rejected = (list(side) for side in zip(*AllAnswers().pairs(spread(wins.tolist())), strict=True))
        zeros = torch.zeros(len(chosen), dtype=torch.float64)
        pairs = PairLogps(*[zeros] * len(PairLogps._fields))._replace(
            policy_chosen=torch.tensor(logratio[chosen]),
            policy_rejected=torch.tensor(logratio[rejected]),
            chosen_win=torch.tensor(wins[chosen]),
            rejected_win=torch.tensor(wins[rejected]),
        )
        loss = SPPO(name="sppo", eta=eta, center=0.5).loss(pairs).mean()
        assert float(loss) == pytest.approx(np.mean((logratio - eta * (wins - 0.5)) ** 2), rel=1e-12), k
