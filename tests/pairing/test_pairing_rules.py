"""Laws of every rule of conf/pairing/, and what each rule says"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import ROOT, typed

from src.kernel.rows import Row
from src.methods.method import PairLogps
from src.methods.sppo import SPPO
from src.pairing.rules import AllAnswers, BestRandom, Candidates, Rule, WPOv1, WPOv2, candidates

NAMES = sorted(path.stem for path in (ROOT / "conf" / "pairing").glob("*.yaml"))
RULES: dict[str, Rule] = {name: typed(f"pairing={name}").pairing.rule for name in NAMES}
ESTIMATORS = {kind: typed(f"estimator={kind}").estimator for kind in ("pairwise", "score")}
V1 = WPOv1(chosen_from=5.0, gap=1.0)


class Asked(NamedTuple):
    """A prompt with answers and what a ranker says of them; its word depends on the answers' contents only."""

    contents: list[tuple[int, ...]]
    scores: dict[tuple[int, ...], float]
    logits: dict[tuple[tuple[int, ...], tuple[int, ...]], float]
    scored: bool = True

    def candidates(self, kind: str = "pairwise", seed: int = 0, prompt_id: str = "p") -> Candidates:
        one = {"finish_reason": "stop", "seed": 0, "source": "policy"}
        answers = [{"token_ids": list(content), "text": str(content)} | one for content in self.contents]
        ranking = self.ranking()
        row = {"prompt_id": prompt_id, "responses": answers}
        return candidates(row, ranking, ESTIMATORS[kind].matrix(ranking), seed)

    def ranking(self) -> Row:
        scores = [self.scores[content] for content in self.contents] if self.scored else None
        logits = None if self.scored else [[self.logits[a, b] for b in self.contents] for a in self.contents]
        return {"scores": scores, "logits": logits, "terms": None}


@st.composite
def prompts(draw: Any) -> Asked:
    """2 to 8 answers with many ties: few contents, few values. Scores 1 to 6 as a judge's, or directed logits."""
    pool = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple), min_size=2, unique=True))
    contents = draw(st.lists(st.sampled_from(pool), min_size=2, max_size=8))
    few = st.sampled_from([-2.0, -0.7, 0.0, 0.3, 0.7])
    logits = {(a, b): draw(few) for a in sorted(set(contents)) for b in sorted(set(contents))}
    scores = {content: float(draw(st.integers(1, 6))) for content in sorted(set(contents))}
    return Asked(contents, scores, logits, draw(st.booleans()))


def ruled(prompt: Asked) -> list[tuple[str, Rule, Asked]]:
    """Every rule, with this prompt as it may ask for it."""
    return [(name, rule, prompt._replace(scored=prompt.scored or rule.needs_scores)) for name, rule in RULES.items()]


def spread(wins: list[float], scores: list[float] | None = None, tokens: list[int] | None = None) -> Candidates:
    """Answers of these win rates; where chance decides, the lower index has the lower number."""
    places = list(range(len(wins)))
    texts = [str(place) for place in places]
    return Candidates(wins, scores, [True] * len(wins), texts, tokens or [1] * len(wins), places, places)


# Laws --------------------------------------------------------------------------------------------------------------


@given(prompts(), st.data(), st.sampled_from(sorted(ESTIMATORS)))
def test_answers_in_another_order_are_the_same_pairs(given_prompt: Asked, data: st.DataObject, kind: str) -> None:
    """Only indices move. Identical answers are interchangeable, so pairs are compared by content."""
    order = data.draw(st.permutations(range(len(given_prompt.contents))))
    for name, rule, prompt in ruled(given_prompt):
        other = prompt._replace(contents=[prompt.contents[i] for i in order])
        assert found(rule, prompt, kind) == found(rule, other, kind), name
    draws, moved = (prompt.candidates(kind) for prompt in (prompt, other))
    assert len({*draws.ties, *draws.lots}) == 2 * len(order), "no two are equal"
    assert sorted(zip(draws.texts, draws.ties, strict=True)) == sorted(zip(moved.texts, moved.ties, strict=True))


def found(rule: Rule, prompt: Asked, kind: str) -> list[tuple[Any, Any]]:
    """(chosen, rejected) answers."""
    return [(prompt.contents[w], prompt.contents[r]) for w, r in rule.pairs(prompt.candidates(kind))]


@given(prompts())
def test_a_pair_is_two_answers_the_chosen_no_worse_and_no_more_pairs_than_said(given_prompt: Asked) -> None:
    for name, rule, prompt in ruled(given_prompt):
        answers = prompt.candidates()
        pairs = rule.pairs(answers)
        assert len(pairs) <= rule.per_prompt(len(prompt.contents)), name
        assert all(w != r and answers.wins[w] >= answers.wins[r] for w, r in pairs), name


def test_chance_is_of_the_seed_and_the_prompt() -> None:
    """Six answers of one win rate and score: some pair differs between 20 seeds, and between 20 prompts."""
    contents: list[tuple[int, ...]] = [(n,) for n in range(6)]
    low = {content: 5.0 if content == (0,) else 1.0 for content in contents}
    equal = Asked(contents, low, {(a, b): 0.0 for a in contents for b in contents}, scored=False)
    for name, rule, prompt in ruled(equal):
        assert rule.pairs(prompt.candidates()) == rule.pairs(prompt.candidates()), name
        assert len({tuple(rule.pairs(prompt.candidates(seed=seed))) for seed in range(20)}) > 1, name
        assert len({tuple(rule.pairs(prompt.candidates(prompt_id=f"p{n}"))) for n in range(20)}) > 1, name


def test_every_answer_that_may_be_drawn_is_drawn_as_often() -> None:
    """Four lower answers, two of them identical, in 2000 prompts: 500 each, with a standard deviation of 20."""
    scores = {(9,): 6.0, (1,): 1.0, (2, 2): 1.0, (3,): 1.0}
    asked = Asked([(9,), (1,), (2, 2), (3,), (3,)], scores, {})
    prompts = [asked.candidates(prompt_id=f"p{n}") for n in range(2000)]
    for rule in (BestRandom(), V1):
        drawn = Counter(rule.pairs(answers)[0][1] for answers in prompts)
        assert set(drawn) == {1, 2, 3, 4} and max(abs(count - 500) for count in drawn.values()) < 4 * 20, rule


# Rules -------------------------------------------------------------------------------------------------------------


@given(prompts(), st.floats(1, 6), st.sampled_from([0.5, 1.0, 2.0]))
def test_wpo_v1_takes_the_best_if_it_is_good_and_one_clearly_worse(
    prompt: Asked, chosen_from: float, gap: float
) -> None:
    answers = prompt._replace(scored=True).candidates()
    scores = answers.scores
    assert scores is not None
    pairs = WPOv1(chosen_from=chosen_from, gap=gap).pairs(answers)
    assert bool(pairs) == (max(scores) >= chosen_from and min(scores) <= max(scores) - gap)
    assert all(scores[w] == max(scores) and scores[r] <= scores[w] - gap for w, r in pairs)


def test_wpo_v1_passes_over_what_no_verdict_was_read_of() -> None:
    """Its score is the mean of the others: 6 would be chosen, 4 drawn; neither was said by the judge."""
    answers = spread([6.0, 5.0, 4.0], [6.0, 5.0, 4.0])
    assert V1.pairs(answers._replace(judged=[False, True, True])) == [(1, 2)]
    assert V1.pairs(answers._replace(judged=[True, True, False])) == [(0, 1)]
    assert V1.pairs(answers._replace(judged=[False, False, True])) == []


def test_wpo_v2_breaks_ties_by_length() -> None:
    """By scores where there are any, whatever the win rates say; else by win rates."""
    for worth, tokens, pair in (
        ([1.0, 3.0, 2.0], [1, 1, 1], (1, 0)),
        ([3.0, 3.0, 1.0], [7, 5, 1], (1, 2)),  # two best: the shorter
        ([3.0, 1.0, 1.0, 1.0], [10, 2, 12, 7], (0, 2)),  # three worst: 2 tokens from 10, not 8 or 3
        ([2.0, 2.0, 2.0], [9, 4, 6], (1, 2)),  # the shortest, and the nearest to it
    ):
        assert WPOv2().pairs(spread([0.5] * len(worth), worth, tokens)) == [pair], worth
        assert WPOv2().pairs(spread(worth, None, tokens)) == [pair], worth
    # sigma(1000) and sigma(2000) are both 1: win rates do not tell such scores apart.
    assert WPOv2().pairs(spread([0.9, 0.5, 0.5], [3000.0, 1000.0, 0.0])) == [(0, 2)]


# All answers -------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.1, 0.9), min_size=2, max_size=12))
def test_every_answer_is_in_two_pairs_and_of_two_answers_each_is_in_one(wins: list[float]) -> None:
    k = len(wins)
    pairs = AllAnswers().pairs(spread(wins))
    assert len(pairs) == AllAnswers().per_prompt(k) == (k if k > 2 else 1)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    assert Counter(i for pair in pairs for i in pair) == dict.fromkeys(range(k), 2 if k > 2 else 1)


def test_the_mean_loss_of_the_pairs_is_that_of_the_answers() -> None:
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
