"""Intervals against textbooks and slow twins; `metrics.json` holds numbers only."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from src.evaluation.statistics import bootstrap_interval, mean_interval
from src.kernel.rows import write_metrics


def test_intervals_of_few_values_by_the_textbook() -> None:
    """Values 0.4 and 0.6: mean 0.5, standard error 0.1; t_1(.975) = 12.706 by any table."""
    assert mean_interval(np.array([0.4, 0.6]), 0.95) == pytest.approx((0.5 - 1.2706, 0.5 + 1.2706), abs=1e-4)
    assert mean_interval(np.array([0.7]), 0.95) == (0.0, 1.0), "one value says nothing"
    assert mean_interval(np.full(9, 0.5), 0.95) == (0.5, 0.5), "equal values are a point"


def test_the_bootstrap_is_that_of_all_resamples() -> None:
    """5^5 = 3,125 means; 10,000 drawn ones have their quantiles within a few percent."""
    values = np.random.default_rng(4).random(5)
    means = [sum(resample) / 5 for resample in itertools.product(values.tolist(), repeat=5)]
    for confidence in (0.5, 0.95):
        ends = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
        found = bootstrap_interval((values,), np.mean, confidence, 10_000, seed=0)
        assert found == pytest.approx(ends.tolist(), abs=0.04 * float(np.ptp(values)))
    assert bootstrap_interval((np.full(7, 0.3),), np.mean, 0.95, 100, seed=0) == (0.3, 0.3), "equal ones are a point"


def test_a_number_that_is_none_is_not_written(tmp_path: Path) -> None:
    for value in (float("nan"), -float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_metrics(tmp_path, {"score": 1.0, "score_low": value})
    assert not list(tmp_path.iterdir())
    write_metrics(tmp_path, {"score": 0.1, "longer_wins": None})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"score": 0.1, "longer_wins": None}
