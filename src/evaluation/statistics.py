"""Intervals of what benchmarks measure, by scipy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Interval = tuple[float, float]
AT_ONCE = 1_000_000
"""Values of resamples in memory."""


def mean_interval(values: np.ndarray, confidence: float) -> Interval:
    """Student-t interval of the mean of independent values in [0, 1]: all of it for one, a point for equal ones."""
    from scipy import stats

    if len(values) < 2:
        return 0.0, 1.0
    if np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    interval = stats.ttest_1samp(values, 0.5).confidence_interval(confidence)
    return float(interval.low), float(interval.high)


def two_way(values: np.ndarray, confidence: float) -> tuple[Interval, float]:
    """Return the interval of the mean over seeds and prompts (seed, prompt), and the p value of its being 0.

    All seeds answer the same prompts, so neither alone are independent observations. Each of the two errors, of crossed
    random effects, is taken with Student's t of its own degrees of freedom, and the two are added as squares: few
    seeds make a wide interval, and no number of seeds makes it narrower than the prompts allow.
    """
    from scipy.optimize import brentq
    from scipy.stats import t

    seeds, prompts = values.shape
    mean, rows, columns = values.mean(), values.mean(1), values.mean(0)
    errors = [(seeds, rows.var(ddof=1) / seeds)]
    if prompts > 1:
        left = (values - rows[:, None] - columns + mean) ** 2
        rest = left.sum() / ((seeds - 1) * (prompts - 1) * seeds * prompts)
        errors = [(seeds, max(errors[0][1], rest)), (prompts, max(columns.var(ddof=1) / prompts - rest, 0.0))]

    def half(p: float) -> float:
        return sum(t.isf(p / 2, count - 1) ** 2 * variance for count, variance in errors) ** 0.5

    if half(0.05) < 1e-12:
        return (float(mean), float(mean)), float(abs(mean) < 1e-12)
    interval = float(mean - half(1 - confidence)), float(mean + half(1 - confidence))
    least = 1e-12
    p: Any = least if half(least) < abs(mean) else brentq(lambda p: half(p) - abs(mean), least, 1.0)
    return interval, float(p)


def ratio_interval(sums: np.ndarray, counts: np.ndarray, confidence: float) -> Interval:
    """Student-t interval of Σ sums / Σ counts over independent clusters, at least two, whose members hang together.

    Each cluster counts as its part in the ratio's linear approximation; with equal counts that is its mean.
    """
    mean = sums.sum() / counts.sum()
    return mean_interval(mean + (sums - mean * counts) * len(counts) / counts.sum(), confidence)


def bootstrap_interval(
    columns: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], confidence: float, resamples: int, seed: int
) -> Interval:
    """Percentile bootstrap of `statistic(*columns, axis=…)`, whose rows are drawn together; a point for equal rows."""
    from scipy.stats import bootstrap

    if all(np.ptp(column) == 0 for column in columns):
        value = float(statistic(*(column[:1] for column in columns), axis=-1))
        return value, value
    how: dict[str, Any] = {"paired": True, "method": "percentile", "confidence_level": confidence}
    how |= {"n_resamples": resamples, "batch": max(1, AT_ONCE // len(columns[0])), "rng": np.random.default_rng(seed)}
    interval = bootstrap(tuple(columns), statistic, **how).confidence_interval
    return float(interval.low), float(interval.high)


def wilson_interval(successes: int, count: int, confidence: float) -> Interval:
    """Wilson's interval of a share."""
    from scipy.stats import binomtest

    interval = binomtest(successes, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def normal_interval(value: float, error: float, confidence: float, most: float) -> Interval:
    """Normal interval of an estimate with this standard error, within what it can be: 0 to `most`."""
    from scipy.stats import norm

    half = float(norm.ppf((1 + confidence) / 2)) * error
    return max(0.0, value - half), min(most, value + half)
