"""From what a ranker says to P(y_i > y_j) and P(y > pi_t): the estimators of SPPO's paper and code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import PositiveFloat

from src.kernel.config import config
from src.kernel.rows import Row

SUMS = 1e-9
"""By which P + P.T may be off 1, through rounding."""


def expit(x: np.ndarray) -> np.ndarray:
    """Return sigma(x) without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))


@config
class Estimator:
    """How win probabilities follow from a ranking: P(y_i > y_j) = sigma(lead_ij / tau)."""

    kind: Literal["pairwise", "score"]
    """pairwise (arXiv:2405.00675 §5): lead_ij = (C_ij - C_ji) / 2, the mean of both orders; need not be transitive.
    score (the public code): s_i = mean_j (C_ij - C_ji), lead_ij = s_i - s_j: Bradley-Terry, about twice the logit.
    Of K scores s of a scalar ranker, both are s_i - s_j."""
    include_self: bool
    """Whether an answer's win rate counts it against itself, which is 1/2."""
    opponents: Literal["all", "pair"]
    """all: a win rate is over the K answers. pair: over the two answers of a pair only."""
    tau: PositiveFloat
    """Temperature: what a lead is divided by."""

    def matrix(self, ranking: Row) -> np.ndarray:
        """Estimate P(y_i > y_j), (K, K), 1/2 on the diagonal; P + P.T is 1 everywhere."""
        if self.kind == "pairwise" or ranking["scores"] is not None:
            return expit(lead(ranking) / self.tau)
        scores = 2 * exact_means(lead(ranking))
        return expit((scores[:, None] - scores[None, :]) / self.tau)

    def win_rates(self, matrix: np.ndarray) -> np.ndarray:
        """Estimate P(y_i > pi_t), (K,): the mean over the K answers, or over the K - 1 others without `include_self`.

        In [1/2K, 1 - 1/2K] with it, so [0.1, 0.9] for K = 5; in [0, 1] without. One answer alone has 1/2.
        """
        k = len(matrix)
        if self.include_self or k == 1:
            return matrix.mean(1)
        return (matrix.sum(1) - 0.5) / (k - 1)

    def of_pair(self, matrix: np.ndarray, chosen: int, rejected: int) -> PairWins:
        """Return the probabilities that a pair is trained on."""
        if self.opponents == "pair":
            matrix, chosen, rejected = matrix[np.ix_([chosen, rejected], [chosen, rejected])], 0, 1
        wins = self.win_rates(matrix)
        return PairWins(float(wins[chosen]), float(wins[rejected]), float(matrix[chosen, rejected]))


class PairWins(NamedTuple):
    """Columns of PAIRS."""

    chosen_win: float
    """P(y_w > pi_t)."""
    rejected_win: float
    """P(y_l > pi_t)."""
    chosen_beats_rejected: float
    """P(y_w > y_l)."""


def lead(ranking: Row) -> np.ndarray:
    """Return by how many logits answer i leads answer j, (K, K), antisymmetric.

    (C_ij - C_ji) / 2 of directed logits C (candidate i shown first), s_i - s_j of scores.
    """
    if ranking["scores"] is not None:
        scores = np.asarray(ranking["scores"], dtype=float)
        return scores[:, None] - scores[None, :]
    logits = np.array(ranking["logits"], dtype=float)
    np.fill_diagonal(logits, 0.0)
    return (logits - logits.T) / 2


def fault_of(matrix: np.ndarray) -> tuple[int, int] | None:
    """Return the first (i, j) where P(y_i > y_j) is not in [0, 1], or P(y_i > y_j) + P(y_j > y_i) is not 1."""
    sound = (matrix >= 0) & (matrix <= 1) & (np.abs(matrix + matrix.T - 1) < SUMS)
    found = np.argwhere(~sound)
    return (int(found[0][0]), int(found[0][1])) if len(found) else None


def saturated(matrix: np.ndarray) -> int:
    """Count pairs of answers of which one wins with a probability that rounds to 1: a lead over 36 tau."""
    return int((matrix == 1).sum())


def saturation_warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Return a line where the `metrics.json` of pairs counts such pairs of answers."""
    count = metrics.get("saturated")
    return [f"{count} pairs of answers have win probabilities of exactly 0 and 1; raise estimator.tau"] if count else []


def exact_means(matrix: np.ndarray) -> np.ndarray:
    """Average each row from a sum rounded once: rows of the same numbers in another order have the same mean."""
    return np.array([math.fsum(row) for row in matrix]) / matrix.shape[1]


def intransitive_triads(lead: np.ndarray) -> tuple[int, int]:
    """Count (cyclic, all) triads; in a cyclic one i beats j beats k beats i, a tie counting as no win."""
    beats = lead > 0
    k = len(lead)
    cycles = int(np.trace(np.linalg.matrix_power(beats.astype(int), 3))) // 3
    return cycles, k * (k - 1) * (k - 2) // 6
