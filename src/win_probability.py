"""From what a ranker says to P(y_i > y_j): the two estimators of SPPO's paper and code."""

from __future__ import annotations

from typing import Literal

import numpy as np

from src.records import Row


def expit(x: np.ndarray) -> np.ndarray:
    """sigma(x) without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))


Estimator = Literal["pairwise", "score"]


def win_matrix(ranking: Row, estimator: Estimator) -> np.ndarray:
    """P(y_i > y_j), (K, K), 1/2 on the diagonal; P + P.T is 1 everywhere.

    From K x K directed logits C (candidate i shown first):
    * pairwise (arXiv:2405.00675 §5): sigma((C_ij - C_ji) / 2), the mean of both orders; need not be transitive.
    * score (the public code): s_i = mean_j (C_ij - C_ji), sigma(s_i - s_j): Bradley-Terry, about twice the logit.
    From K scores s of a scalar ranker, both are sigma(s_i - s_j).
    """
    if ranking["scores"] is not None:
        scores = np.asarray(ranking["scores"], dtype=float)
        return expit(scores[:, None] - scores[None, :])
    logits = np.nan_to_num(np.asarray(ranking["logits"], dtype=float), nan=0.0)
    both_orders = logits - logits.T
    if estimator == "pairwise":
        return expit(both_orders / 2)
    scores = both_orders.mean(1)
    return expit(scores[:, None] - scores[None, :])


def win_rates(matrix: np.ndarray) -> np.ndarray:
    """P(y_i > pi_t), (K,): mean over all K answers, the answer itself (1/2) included; in [1/2K, 1 - 1/2K]."""
    return matrix.mean(1)


def intransitive_triads(matrix: np.ndarray) -> tuple[int, int]:
    """(cyclic, all) triads: i beats j beats k beats i, a tie counting as no win."""
    beats = matrix > 0.5
    k = len(matrix)
    cycles = int(np.trace(np.linalg.matrix_power(beats.astype(int), 3))) // 3
    return cycles, k * (k - 1) * (k - 2) // 6
