"""Estimators of P(y_i > y_j) and P(y > pi_t) from what a ranker says: those of SPPO's paper and of its code."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import PositiveFloat

from src.kernel.config import UserError, config
from src.kernel.rows import Row

TOLERANCE = 1e-9
"""The largest deviation of P + P.T from 1 that rounding explains."""
TIED = 0.9
"""There is a warning where more than this share of the comparisons are near ties."""


def expit(x: np.ndarray) -> np.ndarray:
    """Return sigma(x) without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))


@config
class Estimator:
    """Turns a ranking into win probabilities: P(y_i > y_j) = sigma(lead_ij / tau)."""

    kind: Literal["pairwise", "score"]
    """pairwise (arXiv:2405.00675 §5): lead_ij = (C_ij - C_ji) / 2, the mean of both orders; need not be transitive.
    score (the public code): s_i = mean_j (C_ij - C_ji), lead_ij = s_i - s_j: Bradley-Terry, about twice the logit.
    Of K scores s of a scalar ranker, both are s_i - s_j."""
    include_self: bool
    """Whether an answer's win rate includes the comparison with itself (1/2)."""
    opponents: Literal["all", "pair"]
    """all: a win rate is over the K answers. pair: over the two answers of a pair only."""
    tau: PositiveFloat | Literal["spread"]
    """Temperature: what a lead is divided by. spread: that of a prompt's answers under this ranker; see `measured`."""

    def measured(self, rankings: Iterable[Row]) -> Estimator:
        """Return this estimator with a number for tau. The spread is the root of the mean over the prompts of the
        variance (over K - 1) of the answers' scores, or of their mean logits under a ranker that only compares.

        Raises UserError where no prompt has answers that differ.
        """
        if self.tau != "spread":
            return self
        variances = [np.var(values, ddof=1) for values in map(worth, rankings) if len(values) > 1]
        tau = float(np.sqrt(np.mean(variances or [0.0])))
        if not tau:
            raise UserError("estimator.tau: the scores of a prompt's answers do not differ; give a number")
        return replace(self, tau=tau)

    def matrix(self, ranking: Row) -> np.ndarray:
        """Estimate P(y_i > y_j), (K, K), 1/2 on the diagonal; P + P.T is 1 everywhere."""
        assert self.tau != "spread", "`measured` comes first"
        if self.kind == "pairwise" or ranking["scores"] is not None:
            return expit(lead(ranking) / self.tau)
        scores = 2 * worth(ranking)
        return expit((scores[:, None] - scores[None, :]) / self.tau)

    def win_rates(self, matrix: np.ndarray) -> np.ndarray:
        """Estimate P(y_i > pi_t), (K,): the mean over the K answers, or over the K - 1 others without `include_self`.

        In [1/2K, 1 - 1/2K] with it, so [0.1, 0.9] for K = 5; in [0, 1] without. One answer alone has 1/2.
        """
        k = len(matrix)
        if self.include_self or k == 1:
            return matrix.mean(1)
        return (matrix.sum(1) - 0.5) / (k - 1)

    def of_pair(self, matrix: np.ndarray, chosen: int, rejected: int) -> dict[str, float]:
        """Return what a pair is trained on: P(y_w > pi_t), P(y_l > pi_t) and P(y_w > y_l), as columns of PAIRS."""
        pair, beats = [chosen, rejected], float(matrix[chosen, rejected])
        wins = self.win_rates(matrix)[pair] if self.opponents == "all" else self.win_rates(matrix[np.ix_(pair, pair)])
        return {"chosen_win": float(wins[0]), "rejected_win": float(wins[1]), "chosen_beats_rejected": beats}


def lead(ranking: Row) -> np.ndarray:
    """Return by how many logits answer i leads answer j, (K, K), antisymmetric.

    That is (C_ij - C_ji) / 2 of directed logits C (candidate i shown first), and s_i - s_j of scores.
    """
    if ranking["scores"] is not None:
        scores = np.asarray(ranking["scores"], dtype=float)
        return scores[:, None] - scores[None, :]
    logits = np.array(ranking["logits"], dtype=float)
    np.fill_diagonal(logits, 0.0)
    return (logits - logits.T) / 2


def worth(ranking: Row) -> np.ndarray:
    """Return the scores of the K answers (K,); of a ranker that only compares, mean logits 1/K sum_k s(y_i, y_k)."""
    return np.asarray(ranking["scores"], float) if ranking["scores"] is not None else exact_means(lead(ranking))


def fault_of(matrix: np.ndarray) -> tuple[int, int] | None:
    """Return the first (i, j) where P(y_i > y_j) is not in [0, 1], or P(y_i > y_j) + P(y_j > y_i) is not 1."""
    sound = (matrix >= 0) & (matrix <= 1) & (np.abs(matrix + matrix.T - 1) < TOLERANCE)
    places = np.argwhere(~sound).tolist()
    return tuple(places[0]) if places else None


def saturation_warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Return a line where the `metrics.json` of pairs counts probabilities that round to 1 (leads over 36 tau), and one
    where nearly all are ties.
    """
    count, ties = metrics.get("saturated"), metrics.get("near_ties") or 0.0
    lines = {
        f"{count} pairs of answers have win probabilities of exactly 0 and 1; raise estimator.tau": count,
        f"{ties:.0%} of the comparisons in {metrics.get('prompts')} prompts are near ties, which teach nothing; is the "
        "ranker broken? else lower estimator.tau": ties > TIED,
    }
    return [line for line, holds in lines.items() if holds]


def exact_means(matrix: np.ndarray) -> np.ndarray:
    """Average each row from a sum rounded once: rows of the same numbers in another order have the same mean."""
    return np.array([math.fsum(row) for row in matrix]) / matrix.shape[1]


def intransitive_triads(lead: np.ndarray) -> tuple[int, int]:
    """Count (cyclic, all) triads; in a cyclic one i beats j beats k beats i, a tie counting as no win."""
    beats = lead > 0
    k = len(lead)
    cycles = int(np.trace(np.linalg.matrix_power(beats.astype(int), 3))) // 3
    return cycles, k * (k - 1) * (k - 2) // 6
