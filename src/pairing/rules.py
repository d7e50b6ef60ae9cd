"""Which answers to a prompt become its pairs, one class a rule, and which pairs are left out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat

from src.kernel.config import Share, config
from src.kernel.rows import Row
from src.pairing.win_probability import exact_means, worth


class Candidates(NamedTuple):
    """The K answers to a prompt. Every field has one value for each answer."""

    wins: list[float]
    """P(y > pi_t) over all K answers, in [0, 1]: equal win rates are equal numbers."""
    worth: list[float]
    """The ranker's scores; where it only compares s(y_i) = 1/K sum_k s(y_i, y_k), the mean lead in logits."""
    judged: list[bool]
    """False: the judge's verdict could not be read, and the score is filled in."""
    texts: list[str]
    tokens: list[int]
    """Lengths, in tokens."""
    ties: list[int]
    """Random numbers; the lower one comes first among equals."""
    lots: list[int]
    """Random numbers independent of `ties`; the lowest one is drawn where an answer is drawn."""

    def best_first(self, values: list[float]) -> list[int]:
        """Return the indices, sorted by these values of the answers: `wins` or `worth`."""
        return sorted(range(len(values)), key=lambda i: (-values[i], self.ties[i]))

    def draw(self, among: list[int]) -> int:
        """Return one of these indices, each equally likely."""
        return min(among, key=lambda i: self.lots[i])


def candidates(row: Row, ranking: Row, matrix: np.ndarray, seed: int) -> Candidates:
    """Return the candidates of a RESPONSES row, its RANKING row and P(y_i > y_j).

    Their random numbers come from seed, prompt and content, so an answer keeps them in another place. The second of
    two identical answers has other numbers, so that each answer is drawn as often as any other.
    """
    answers, seen, digests = row["responses"], Counter[bytes](), []
    for answer in answers:
        content = f"{answer['source']}/".encode() + np.asarray(answer["token_ids"], dtype="<i4").tobytes()
        digests.append(hashlib.sha256(f"{seed}/{row['prompt_id']}/{seen[content]}/".encode() + content).digest())
        seen[content] += 1
    malformed = [term["values"] for term in ranking["terms"] or [] if term["name"] == "malformed"]
    return Candidates(
        wins=exact_means(matrix).tolist(),
        worth=worth(ranking).tolist(),
        judged=[not any(values[i] for values in malformed) for i in range(len(answers))],
        texts=[answer["text"] for answer in answers],
        tokens=[len(answer["token_ids"]) for answer in answers],
        ties=[int.from_bytes(digest[:16]) for digest in digests],
        lots=[int.from_bytes(digest[16:32]) for digest in digests],
    )


Reason = Literal["identical", "margin", "length"]

ADVICE: dict[Reason, str] = {
    "identical": "identical; raise sampling.temperature",
    "margin": "nearer than pairing.filters.min_margin; lower it",
    "length": "whose lengths differ by more than pairing.filters.max_length_gap; raise it",
}
"""Why a filter leaves pairs out, and what brings them back, for messages."""


@config
class Filters:
    """Which pairs are left out."""

    drop_identical: bool
    """Leave out pairs of the same text."""
    min_margin: Share | None
    """Least chosen_win - rejected_win; None: any."""
    max_length_gap: NonNegativeInt | None
    """Most tokens by which one answer is longer than the other; None: any."""

    def refuse(self, pair: Row, same_text: bool) -> Reason | None:
        """Return why the pair is left out, the first reason in the order of the fields; None: it is kept."""
        chosen, rejected = pair["chosen_token_ids"], pair["rejected_token_ids"]
        if self.drop_identical and same_text:
            return "identical"
        if self.min_margin is not None and pair["chosen_win"] - pair["rejected_win"] < self.min_margin:
            return "margin"
        if self.max_length_gap is not None and abs(len(chosen) - len(rejected)) > self.max_length_gap:
            return "length"
        return None


Pairs = list[tuple[int, int]]
"""Indices of (chosen, rejected); two different answers."""


class Rule(ABC):
    """A rule gives the same pairs for answers in another order; seed, prompt and content decide among equals."""

    needs_scores: ClassVar[bool] = False
    """True: the rule reads the ranker's scores; comparisons are not enough."""

    def per_prompt(self, answers: int) -> int:
        """Return the most pairs that a prompt with so many answers can have."""
        return 1

    @abstractmethod
    def pairs(self, answers: Candidates) -> Pairs:
        """Return the pairs of two answers or more; none where no two of them fit."""
        ...


@config
class BestWorst(Rule):
    """Chosen = highest score, or mean logit, among the K answers, rejected = lowest (arXiv:2405.00675 §5, appendix)."""

    def pairs(self, answers: Candidates) -> Pairs:
        order = answers.best_first(answers.worth)
        return [(order[0], order[-1])]


@config
class WinRate(Rule):
    """Chosen = highest win rate among the K answers, rejected = lowest: by probabilities, which the estimator says."""

    def pairs(self, answers: Candidates) -> Pairs:
        order = answers.best_first(answers.wins)
        return [(order[0], order[-1])]


@config
class WPOv1(Rule):
    """Chosen = highest score, if it is `chosen_from` or more; rejected = any answer at least `gap` lower.

    arXiv:2406.11827 has a judge give 1 to 6 and chooses among the 5s and 6s; without saying which, so it is a 6 here
    where there is one. An answer whose verdict could not be read is passed over, a prompt without such a pair left out.
    """

    needs_scores: ClassVar[bool] = True
    chosen_from: float
    """On the ranker's scale."""
    gap: PositiveFloat

    def pairs(self, answers: Candidates) -> Pairs:
        scores, judged = answers.worth, [i for i, known in enumerate(answers.judged) if known]
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
class WPOv2(Rule):
    """Chosen = highest score, rejected = lowest; mean logits of a ranker that only compares (WPO-HB-v2).

    Of several best the shortest; of several worst the one nearest in length, in tokens, to the chosen.
    """

    def pairs(self, answers: Candidates) -> Pairs:
        scores, tokens, ties = answers.worth, answers.tokens, answers.ties
        chosen = min(range(len(scores)), key=lambda i: (-scores[i], tokens[i], ties[i]))
        others = [i for i in range(len(scores)) if i != chosen]
        rejected = min(others, key=lambda i: (scores[i], abs(tokens[i] - tokens[chosen]), ties[i]))
        return [(chosen, rejected)]


@config
class AllAnswers(Rule):
    """Every answer has its own term of SPPO's loss, averaged over the K answers (arXiv:2405.00675 eq. 4.7).

    The loss of a pair is (term_w + term_l) / 2. In the ring (1, 2), (2, 3) ... (K-1, K), (1, K) of answers by win rate
    each is in two pairs, so the mean over the K pairs is that over the K answers. Two answers are one pair.
    It is exact as long as no filter breaks the ring and `estimator.opponents` is all.
    """

    def per_prompt(self, answers: int) -> int:
        return answers if answers > 2 else 1

    def pairs(self, answers: Candidates) -> Pairs:
        order = answers.best_first(answers.wins)
        return [*pairwise(order), (order[0], order[-1])][: self.per_prompt(len(order))]
