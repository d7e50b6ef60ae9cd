"""Win rates against slow and obvious twins, on made-up numbers."""

from __future__ import annotations

import numpy as np
import pytest
from alpaca_eval_made_up import quiet_library

from src.config import UserError
from src.evaluation.alpaca_eval import length_control, library
from src.evaluation.alpaca_eval.length_control import (
    CS,
    Gamed,
    Rows,
    fit,
    length_controlled,
    of_baseline,
    standardised,
    win_rate,
)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(3))
def test_win_rates_against_the_library(seed: int) -> None:
    """Random preferences with ties, in both ways of writing one, and failures."""
    with quiet_library():
        from alpaca_eval.metrics import get_winrate
    lots = np.random.default_rng(seed)
    raw = np.where(lots.random(200) < 0.2, 1.5, 1 + lots.random(200))
    raw[lots.random(200) < 0.1] = np.nan
    theirs = get_winrate([{"preference": value} for value in np.where(raw == 1.5, lots.choice([0, 1.5], 200), raw)])
    ours = win_rate(raw)
    assert {key: getattr(ours, key) for key in ours._fields} == pytest.approx(
        {key: theirs[key] for key in ours._fields}
    )


def test_a_win_rate_by_hand() -> None:
    """Shares 1, 0.5, 0.25: mean 7/12, variance (25 + 1 + 16)/144 / 2 = 21/144; one win, one draw, one loss."""
    found = win_rate(np.array([2, 1.5, 1.25, np.nan]))
    assert found[:1] + found[2:] == pytest.approx((700 / 12, 1, 1, 1, 3, 50))
    assert found.standard_error == pytest.approx(100 * np.sqrt(21 / 144 / 3))


def _random(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Gamed]:
    lots = np.random.default_rng(seed)
    difficulty, own = lots.normal(size=count), 1 + lots.beta(0.4, 0.6, count)
    own[lots.random(count) < 0.1] = np.nan
    gamed = Gamed(lots.random(2 * count), lots.normal(size=2 * count), np.tile(difficulty, 2))
    return own, lots.integers(1, 3000, count) * 1.0, lots.integers(1, 3000, count) * 1.0, difficulty, gamed


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("C", [0.05, 1.0, 21.5])
def test_a_fit_is_the_minimum_of_its_objective(seed: int, C: float) -> None:
    """C Σ w log loss + |b|₁, minimised over b = p - n with p, n ≥ 0; at small C some coefficients are 0."""
    from scipy.optimize import minimize

    own, len_1, len_2, difficulty, gamed = _random(seed)
    found = length_controlled(own, len_1, len_2, difficulty, gamed, C)
    z = (len_1 - len_2) / (len_1 - len_2).std(ddof=1)
    rows = [([np.tanh(g), d, 0], y, 0.1) for y, g, d in zip(*gamed, strict=True)]
    rows += [([np.tanh(a), d, 1], y - 1, 1.0) for a, d, y in zip(z, difficulty, own, strict=True) if y == y]
    x, y, w = (np.array(column) for column in zip(*rows, strict=True))

    def objective(both: np.ndarray) -> float:
        s = x @ (both[:3] - both[3:])
        return C * float(np.sum(w * (y * np.logaddexp(0, -s) + (1 - y) * np.logaddexp(0, s)))) + both.sum()

    least = minimize(objective, np.full(6, 0.1), bounds=[(0, None)] * 6, method="L-BFGS-B", options={"ftol": 1e-15})
    assert found.coefficients == pytest.approx(least.x[:3] - least.x[3:], abs=2e-3)
    chances = [1 / (1 + np.exp(-(found.coefficients[1] * d + found.coefficients[2]))) for d in difficulty]
    assert found.predictions == pytest.approx(chances) and found.win_rate == pytest.approx(100 * np.mean(chances))
    assert found.standard_error == pytest.approx(100 * np.std(chances, ddof=1) / np.sqrt(len(own)))


def test_the_penalty_is_the_best_on_rows_left_out() -> None:
    """By plain loops: rows are dealt to folds in turn, from the last one on, as equal groups are."""
    own, len_1, len_2, difficulty, gamed = _random(7)
    rows = length_control._rows(own, standardised(len_1, len_2), difficulty, gamed)
    count, losses = len(rows.target), []
    from sklearn.model_selection import GroupKFold

    folds = [set(out.tolist()) for _, out in GroupKFold(5).split(rows.features, groups=np.arange(count))]
    assert sorted(i for fold in folds for i in fold) == list(range(count))
    for C in CS:
        means = []
        for fold in folds:
            kept = np.array([i for i in range(count) if i not in fold])
            b = fit(Rows(rows.features[kept], rows.target[kept], rows.weight[kept]), C)
            each = []
            for i in fold:
                p = 1 / (1 + np.exp(-float(rows.features[i] @ b)))
                each.append(-rows.weight[i] * (rows.target[i] * np.log(p) + (1 - rows.target[i]) * np.log(1 - p)))
            means.append(np.mean(each))
        losses.append(np.mean(means))
    assert CS[int(np.argmin(losses))] == length_controlled(own, len_1, len_2, difficulty, gamed).C


def test_a_row_without_a_preference_is_predicted_and_not_fitted_to() -> None:
    """It has no preference to tell, but a length, so it is part of the standard deviation."""
    own, len_1, len_2, difficulty, gamed = _random(3)
    failed = np.isnan(own)
    found = length_controlled(own, len_1, len_2, difficulty, gamed, 1.0)
    assert failed.any() and len(found.predictions) == len(own)
    z = standardised(len_1, len_2)[~failed]
    rows = Rows(
        np.vstack(
            [
                np.column_stack([np.tanh(gamed.length), gamed.difficulty, np.zeros(len(gamed.length))]),
                np.column_stack([np.tanh(z), difficulty[~failed], np.ones(len(z))]),
            ]
        ),
        np.concatenate([gamed.preference, own[~failed] - 1]),
        np.repeat([0.1, 1.0], [len(gamed.length), len(z)]),
    )
    assert found.coefficients == pytest.approx(fit(rows, 1.0), abs=1e-12)


def test_equal_lengths_and_the_baseline_itself() -> None:
    assert standardised(np.array([5.0, 7.0]), np.array([3.0, 5.0])).tolist() == [0, 0]
    assert standardised(np.array([5.0]), np.array([3.0])).tolist() == [0]
    found = of_baseline(4)
    assert (found.win_rate, found.standard_error) == (50, 0)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for check, name in ((length_control.check_installed, "scikit-learn"), (library.check_installed, "alpaca-eval")):
        with pytest.raises(UserError, match=rf"needs {name}: pip install 'iterpref\[eval\]', or `make install`"):
            check()
