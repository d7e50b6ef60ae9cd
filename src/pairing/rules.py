"""Which answers to a prompt become its pairs: one class a rule."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Protocol, runtime_checkable

from pydantic import PositiveFloat

from src.kernel.config import UserError, config
from src.pairing.candidates import Candidates

Pairs = list[tuple[int, int]]
"""Indices of (chosen, rejected); two different answers."""


@runtime_checkable
class Rule(Protocol):
    """Answers in another order give the same pairs; among equals, chance of seed, prompt and content decides."""

    needs_scores: ClassVar[bool]
    """True: reads the ranker's scores, and comparisons alone are not enough."""

    def per_prompt(self, answers: int) -> int:
        """Pairs of a prompt with so many answers, at most."""
        ...

    def pairs(self, answers: Candidates) -> Pairs:
        """Of two answers or more; empty where no two of them fit."""
        ...


@config
class BestWorst:
    """Chosen = best win rate among the K answers, rejected = worst (arXiv:2405.00675 §5)."""

    needs_scores: ClassVar[bool] = False

    def per_prompt(self, answers: int) -> int:
        return 1

    def pairs(self, answers: Candidates) -> Pairs:
        order = answers.best_first()
        return [(order[0], order[-1])]


@config
class BestRandom:
    """Chosen = best win rate, rejected = any other answer, of another text where there is one."""

    needs_scores: ClassVar[bool] = False

    def per_prompt(self, answers: int) -> int:
        return 1

    def pairs(self, answers: Candidates) -> Pairs:
        best, *others = answers.best_first()
        different = [i for i in others if answers.texts[i] != answers.texts[best]]
        return [(best, answers.draw(different or others))]


@config
class WPOv1:
    """Chosen = highest score, if it is `chosen_from` or more; rejected = any answer at least `gap` lower.

    arXiv:2406.11827 has a judge give 1 to 6 and chooses among the 5s and 6s; without saying which, so it is a 6 here
    where there is one. An answer whose verdict could not be read is passed over, a prompt without such a pair left out.
    """

    needs_scores: ClassVar[bool] = True

    chosen_from: float
    """On the ranker's scale."""
    gap: PositiveFloat

    def per_prompt(self, answers: int) -> int:
        return 1

    def pairs(self, answers: Candidates) -> Pairs:
        if answers.scores is None:
            raise UserError(NO_SCORES)
        scores, judged = answers.scores, [i for i, known in enumerate(answers.judged) if known]
        best = min(judged, key=lambda i: (-scores[i], answers.ties[i]), default=None)
        if best is None or scores[best] < self.chosen_from:
            return []
        lower = [i for i in judged if scores[i] <= scores[best] - self.gap]
        return [(best, answers.draw(lower))] if lower else []


NO_SCORES = (
    "pairing: wpo_v1 reads scores, and this ranker only compares answers; "
    "choose pairing=wpo_v2, or a ranker that scores each answer (ranker=llm_judge_points)"
)


@config
class WPOv2:
    """Chosen = highest score, rejected = lowest; win rates under a ranker that only compares (WPO-HB-v2).

    Of several best the shortest; of several worst the one nearest in length, in tokens, to the chosen.
    """

    needs_scores: ClassVar[bool] = False

    def per_prompt(self, answers: int) -> int:
        return 1

    def pairs(self, answers: Candidates) -> Pairs:
        worth, tokens, ties = answers.scores or answers.wins, answers.tokens, answers.ties
        chosen = min(range(len(worth)), key=lambda i: (-worth[i], tokens[i], ties[i]))
        others = [i for i in range(len(worth)) if i != chosen]
        rejected = min(others, key=lambda i: (worth[i], abs(tokens[i] - tokens[chosen]), ties[i]))
        return [(chosen, rejected)]


@config
class AllAnswers:
    """Every answer has its own term of SPPO's loss, averaged over the K answers (arXiv:2405.00675 eq. 4.7).

    The loss of a pair is (term_w + term_l) / 2. In the ring (1, 2), (2, 3) ... (K-1, K), (1, K) of answers by win rate
    each is in two pairs, so the mean over the K pairs is that over the K answers. Two answers are one pair.
    It is exact as long as no filter breaks the ring and `estimator.opponents` is all.
    """

    needs_scores: ClassVar[bool] = False

    def per_prompt(self, answers: int) -> int:
        return answers if answers > 2 else 1

    def pairs(self, answers: Candidates) -> Pairs:
        order = answers.best_first()
        return [*pairwise(order), (order[0], order[-1])][: self.per_prompt(len(order))]
