"""Win rate and length-controlled win rate of AlpacaEval 2 (arXiv:2404.04475), in percent.

The length-controlled one is what a logistic model says the win rate were without a difference in length:

    P(m beats the baseline on i) = σ(a tanh(z_i) + b d_i + c),   LC = 100 mean_i σ(b d_i + c)

z_i: characters of the baseline's answer less those of the model's, over their standard deviation; d_i: the difficulty
of the instruction. It is fitted to the model's rows and, with weight 0.1, to those of two baselines that were told to
be short and long, for which the indicator of c is 0; L1 penalty through liblinear, C by 5-fold cross-validation.
What the library does, without its network access, its join by position and its arguments that scikit-learn has dropped.
"""

from __future__ import annotations

import math
from importlib import metadata, util
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from src.evaluation.alpaca_eval.files import Gamed, Items
from src.kernel.config import UserError

CS = np.logspace(-4, 4, 10)
FOLDS = 5
GAMED_WEIGHT = 0.1
"""0.2 shared by two baselines."""
SEED = 123
"""Seed of the order in which liblinear takes the coordinates, and of resamples."""
RESAMPLES = 200
LEAST = 1e-15
"""A probability is not taken to be further from a certain one."""
Coefficients = Float[np.ndarray, "3"]
"""a, b, c: the weights of length, difficulty and model."""


class LengthControlled(NamedTuple):
    win_rate: float
    standard_error: float
    """Standard error of the mean prediction: the spread over instructions, not the uncertainty of the fit."""
    predictions: Items
    """The model's win probability on each instruction without a difference in length."""
    coefficients: Coefficients
    C: float


def standardised(len_1: Items, len_2: Items) -> Items:
    """Divides differences in length (baseline less model) by their standard deviation; 0 where all are equal."""
    difference = len_1 - len_2
    deviation = difference.std(ddof=1) if len(difference) > 1 else 0.0
    return difference / deviation if deviation else np.zeros(len(difference))


def predict(coefficients: Coefficients, difficulty: Items) -> Items:
    """Computes win probabilities without a difference in length."""
    return _sigmoid(coefficients[1] * difficulty + coefficients[2])


def length_controlled(
    preferences: Items, len_1: Items, len_2: Items, difficulty: Items, gamed: Gamed, C: float | None = None
) -> LengthControlled:
    """Fits to preferences in [1, 2]; a row with NaN, where the annotator failed, is predicted but not fitted to.

    C is chosen by cross-validation where it is None. At least one preference is known.
    """
    check_installed()
    rows = _rows(preferences, standardised(len_1, len_2), difficulty, gamed)
    chosen = _choose_C(rows) if C is None else C
    coefficients = fit(rows, chosen)
    return _of(predict(coefficients, difficulty), coefficients, chosen)


def resampled(
    preferences: Items, len_1: Items, len_2: Items, difficulty: Items, gamed: Gamed, C: float, count: int = RESAMPLES
) -> Items:
    """Computes LC win rates of `count` bootstrap samples of the instructions, each fitted anew at `C`."""
    chance, n = np.random.default_rng(SEED), len(preferences)
    found: list[float] = []
    while len(found) < count:
        drawn = chance.integers(n, size=n)
        if np.isnan(preferences[drawn]).all():
            continue
        columns = (preferences[drawn], len_1[drawn], len_2[drawn], difficulty[drawn])
        found.append(length_controlled(*columns, gamed, C).win_rate)
    return np.array(found)


def of_baseline(count: int) -> LengthControlled:
    """Gives what the baseline has against itself, by construction."""
    return _of(np.full(count, 0.5), np.zeros(3), math.nan)


def check_installed() -> None:
    """Raises UserError where scikit-learn is not there."""
    if util.find_spec("sklearn") is None:
        raise UserError("length control needs scikit-learn: pip install 'iterpref[eval]', or `make install`")


def version() -> str:
    """Names what fits. Where it is not there, nothing can be fitted, and the other numbers need none."""
    try:
        return f"scikit-learn {metadata.version('scikit-learn')}"
    except metadata.PackageNotFoundError:
        return "no scikit-learn"


class Rows(NamedTuple):
    """Features and targets of the fit."""

    features: Float[np.ndarray, "row 3"]
    target: Items
    """In [0, 1]."""
    weight: Items

    def take(self, picked: np.ndarray) -> Rows:
        return Rows(self.features[picked], self.target[picked], self.weight[picked])


def fit(rows: Rows, C: float) -> Coefficients:
    """Minimises C Σ weight · log loss + |coefficients|₁."""
    from sklearn.linear_model import LogisticRegression

    # A target between 0 and 1 is a row of each class, weighted by it. L1 is l1_ratio=1: `penalty` is gone in 1.10.
    model = LogisticRegression(C=C, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=SEED)
    classes = np.repeat([1, 0], len(rows.target))
    weights = np.concatenate([rows.target * rows.weight, (1 - rows.target) * rows.weight])
    return model.fit(np.vstack([rows.features] * 2), classes, sample_weight=weights).coef_[0]


def _rows(preferences: Items, length: Items, difficulty: Items, gamed: Gamed) -> Rows:
    """Puts the gamed rows first, as in the library: which rows share a fold follows from their places."""
    known = ~np.isnan(preferences)
    features = [(gamed.length, gamed.difficulty, 0.0), (length[known], difficulty[known], 1.0)]
    blocks = [np.column_stack([np.tanh(z), d, np.full(len(z), own)]) for z, d, own in features]
    weights = np.repeat([GAMED_WEIGHT, 1.0], [len(gamed.preference), int(known.sum())])
    return Rows(np.vstack(blocks), np.concatenate([gamed.preference, preferences[known] - 1]), weights)


def _choose_C(rows: Rows) -> float:
    """Takes the one with the least weighted log loss on rows left out (mean of the folds' means)."""
    from sklearn.model_selection import GroupKFold

    everyone = np.arange(len(rows.target))
    folds = list(GroupKFold(FOLDS).split(rows.features, groups=everyone))
    losses = [np.mean([_loss(rows.take(out), fit(rows.take(kept), C)) for kept, out in folds]) for C in CS]
    return float(CS[int(np.argmin(losses))])


def _loss(rows: Rows, coefficients: Coefficients) -> float:
    p = np.clip(_sigmoid(rows.features @ coefficients), LEAST, 1 - LEAST)
    return -float(np.mean(rows.weight * (rows.target * np.log(p) + (1 - rows.target) * np.log(1 - p))))


def _of(predictions: Items, coefficients: Coefficients, C: float) -> LengthControlled:
    error = 100 * standard_error(predictions)
    return LengthControlled(100 * float(predictions.mean()), error, predictions, coefficients, C)


def standard_error(values: Items) -> float:
    """Computes that of the mean; NaN for fewer than two values."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _sigmoid(x: Items) -> Items:
    return np.exp(-np.logaddexp(0, -x))
