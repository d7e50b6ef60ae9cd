"""Differences of neighbours against a slow plain twin; who is a neighbour; what cannot be compared."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from made_up_sweep import Made, grid, write
from places import TESTS
from scipy import integrate

from src.reporting.compare.gather import WIN
from src.reporting.compare.points import compare_folders
from src.reporting.compare.significance import differences, holm, interval, paired


def density(t: float, degrees: int) -> float:
    """Of Student's t."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    return scale * (1 + t * t / degrees) ** (-(degrees + 1) / 2)


def tail(t: float, degrees: int) -> float:
    """Two-sided p value: the area beyond |t| on both sides."""
    return 2 * integrate.quad(density, abs(t), np.inf, args=(degrees,))[0]


def slow(first: dict[str, float], second: dict[str, float]) -> tuple[float, float, float, int]:
    """Mean, standard error, p value and number of the differences, by loops."""
    values = []
    for key, value in first.items():
        for other, other_value in second.items():
            if key == other:
                values.append(other_value - value)
    mean = 0.0
    for value in values:
        mean += value / len(values)
    square = 0.0
    for value in values:
        square += (value - mean) ** 2
    error = math.sqrt(square / (len(values) - 1)) / math.sqrt(len(values))
    return mean, error, tail(mean / error, len(values) - 1), len(values)


def test_a_difference_is_that_of_the_slow_twin() -> None:
    for trial in range(20):
        random = np.random.default_rng(trial)
        first, second = (
            {f"p{i}": float(random.random()) for i in random.choice(30, size=random.integers(12, 30), replace=False)}
            for _ in range(2)
        )
        found = paired(first, second, 0.9)
        mean, error, p, number = slow(first, second)
        assert found and found.number == number, trial
        assert (found.mean, found.p) == pytest.approx((mean, p), abs=1e-9), trial
        half = (found.high - found.low) / 2
        assert found.low + half == pytest.approx(mean) and tail(half / error, number - 1) == pytest.approx(0.1), trial


def test_a_difference_of_none_and_of_equal_values() -> None:
    assert paired({"a": 0.5}, {"a": 0.6}, 0.95) is None
    assert paired({"a": 0.5, "b": 0.5}, {"c": 0.6, "d": 0.5}, 0.95) is None
    same = {"a": 0.25, "b": 0.5}
    assert paired(same, same, 0.95) == (0.0, 0.0, 0.0, 1.0, 2)
    assert interval([0.5, 0.5, 0.5], 0.95) == (0.5, 0.5, 0.5)


def test_differences_that_are_all_the_same_are_tested_by_their_signs() -> None:
    """Their variance is none: two items alone prove nothing, however alike. The twin counts all sequences of signs."""
    for count in (2, 5, 6, 12):
        first = {f"p{i}": 0.25 * (i % 3) for i in range(count)}
        signs = [sum(signs) for signs in product((-1, 1), repeat=count)]
        p = sum(abs(total) >= count for total in signs) / len(signs)
        found = paired(first, {key: value + 1 for key, value in first.items()}, 0.95)
        assert found == (1.0, 1.0, 1.0, p, count) and (p < 0.05) == (count >= 6)


def test_differences_that_rounding_alone_sets_apart_are_the_same() -> None:
    first, second = {"a": 0.1, "b": 0.2}, {"a": 0.1 + 0.2, "b": 0.2 + 0.2}
    assert second["a"] - first["a"] != second["b"] - first["b"]
    found = paired(first, second, 0.95)
    assert found and found.p == 0.5 and found.mean == pytest.approx(0.2)
    found = paired({"a": 0.3, "b": 0.5}, {"a": 0.1 + 0.2, "b": 0.5}, 0.95)
    assert found and found.p == 1.0


def test_holm_is_the_closed_test_of_all_subsets() -> None:
    """The closure that Holm shortens: rejected where every subset with it has a Bonferroni rejection."""
    for trial in range(20):
        p = np.random.default_rng(trial).random(5) ** 3
        subsets = [[j for j in range(5) if subset >> j & 1] for subset in range(1, 32)]
        bonferroni = [(some, min(1.0, min(p[j] for j in some) * len(some))) for some in subsets]
        worst = [max(value for some, value in bonferroni if i in some) for i in range(5)]
        assert holm(p.tolist()) == pytest.approx(worst), trial


def constant(made: Made, t: int) -> np.ndarray:
    """Each prompt wins .3 + .1 log10(eta) + .05 t, plus what is the prompt's own."""
    easy = np.array([-0.1, 0.0, 0.1, 0.05, -0.05])
    wobble = np.array([0.001, -0.001, 0.002, -0.002, 0.0]) * (t + made.eta)
    return 0.3 + 0.1 * np.log10(made.eta) + 0.05 * t + easy + wobble + 0.01 * made.seed


def test_neighbours_are_next_to_each_other_in_one_key_and_iterations_follow_each_other(tmp_path: Path) -> None:
    found = compare_folders(write(tmp_path, grid((10, 1, 100), (1e-5, 2e-5)), constant), "x")
    told = [(d.step, d.rest) for d in differences(found)]
    assert [told.count((f"η {a} → {b}", f"lr {lr}, iteration {t}"))
            for a, b in ((1, 10), (10, 100)) for lr in ("1e-5", "2e-5") for t in (1, 2)] == [1] * 8  # fmt: skip
    assert sum(step == "lr 1e-5 → 2e-5" for step, _ in told) == 6
    assert sum(step == "iteration 1 → 2" for step, _ in told) == 6
    assert len(told) == 20, "and η 1 → 100 is none"
    points = [Made(method=name, iterations=1) for name in ("sppo", "sppo_single", "dpo")]
    words = compare_folders(write(tmp_path / "words", points), "x")
    assert sorted(d.step for d in differences(words)) == [
        "method dpo → sppo", "method dpo → sppo_single", "method sppo → sppo_single"
    ]  # fmt: skip


def test_the_known_difference_is_found_and_the_prompts_own_ease_is_no_noise(tmp_path: Path) -> None:
    found = compare_folders(write(tmp_path, grid((1, 10), (1e-5,)), constant), "x")
    eta, *_, over = differences(found)
    assert eta.paired and eta.paired.mean == pytest.approx(0.1, abs=1e-3) and eta.paired.number == 5
    assert [eta._replace(holm=p).differs for p in (0.049, 0.05, 0.2, None)] == [True, False, False, False]
    assert eta.differs and eta.paired.high - eta.paired.low < 0.05
    assert over.key == "iteration" and over.paired and over.paired.mean == pytest.approx(0.05, abs=1e-3)


def test_another_base_ranker_or_held_out_set_gives_a_reason_and_no_number(tmp_path: Path) -> None:
    for other, said in ((Made(model="big", iterations=1), "other base policy"),
                        (Made(ranker="pairrm", iterations=1), "other ranker")):  # fmt: skip
        found = compare_folders(write(tmp_path / other.model / other.ranker, [Made(iterations=1), other]), "x")
        (difference,) = differences(found)
        assert difference.paired is None and difference.holm is None and not difference.differs
        assert said in difference.reason and len(found.yardsticks) == 2
    first, second = write(tmp_path, grid((1, 10), (1e-5,), iterations=1))
    link = second / "artifacts/held_out/prompts"
    link.unlink()
    other = tmp_path / "store/prompts" / ("0" * 20)
    other.mkdir()
    (other / "record.json").write_text(json.dumps({"files": {}}))
    link.symlink_to(other)
    (difference,) = differences(compare_folders([first, second], "x"))
    assert difference.reason == "not comparable: other held-out prompts"


def test_over_seeds_a_pair_of_runs_is_one_observation(tmp_path: Path) -> None:
    found = compare_folders(write(tmp_path, grid((1, 10), (1e-5,), (0, 1, 2), iterations=1)), "x")
    apart = [d for d in differences(found) if d.over == "prompts"]
    (over,) = [d for d in differences(found) if d.over == "seeds"]
    one, two = ([run.steps[0].numbers[WIN] for run in point.runs] for point in found.points)
    mean, _, p, number = slow(dict(zip("abc", one, strict=True)), dict(zip("abc", two, strict=True)))
    assert len(apart) == 3 and number == 3
    assert over.paired and (over.paired.mean, over.paired.p) == pytest.approx((mean, p))
    assert over.holm == over.paired.p, "corrected for its own kind"
    assert sorted(d.holm or 0 for d in apart) == pytest.approx(sorted(holm([d.paired.p for d in apart if d.paired])))


def test_the_numbers_of_a_sweep_are_those_that_were_recorded(tmp_path: Path) -> None:
    """Differences, intervals, p values and Holm's correction of each pair of neighbours, by prompt and by seed."""
    found = compare_folders(write(tmp_path, grid((10, 100, 1000), (1e-5, 2e-5), (0, 1))), "x")
    recorded = json.loads((TESTS / "golden" / "compare_differences.json").read_text())
    rows = [[d.step, d.rest, d.over, *(d.paired.number, *d.paired[:4]), d.holm] for d in differences(found)]
    assert [row[:4] for row in rows] == [row[:4] for row in recorded]
    assert [row[4:] for row in rows] == [pytest.approx(row[4:], rel=1e-12, abs=1e-15) for row in recorded]
