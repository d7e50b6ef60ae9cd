"""A pairing rule: each answer beside the next worse one."""

from __future__ import annotations

from itertools import pairwise

from src.kernel.config import config
from src.pairing.rules import Candidates, Pairs, Rule


@config
class Neighbours(Rule):
    """K answers by win rate give the K - 1 pairs (1, 2), (2, 3) … (K-1, K)."""

    def per_prompt(self, answers: int) -> int:
        return answers - 1

    def pairs(self, answers: Candidates) -> Pairs:
        return list(pairwise(answers.best_first(answers.wins)))
