"""Differences of neighbours against a slow plain twin; who is a neighbour; what cannot be compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_sweep import ITEMS, MadeUpRun, grid, put, write
from places import TESTS
from scipy import integrate, stats

from src.reporting.compare.points import compare_folders
from src.reporting.compare.significance import Difference, benchmark_differences, holm, paired, win_rate_differences


def differences(folders: list[Path]) -> list[Difference]:
    return win_rate_differences(compare_folders(folders, "x"))


# Statistics ----------------------------------------------------------------------------------------------------------


def tail(t: float, degrees: int) -> float:
    """Two-sided p value: the area below Student's density beyond |t| on both sides."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    return 2 * integrate.quad(lambda x: scale * (1 + x * x / degrees) ** (-(degrees + 1) / 2), abs(t), np.inf)[0]


def test_a_difference_is_that_of_the_slow_twin() -> None:
    for trial in range(20):
        random = np.random.default_rng(trial)
        first, second = (
            {f"p{i}": float(random.random()) for i in random.choice(30, size=random.integers(12, 30), replace=False)}
            for _ in range(2)
        )
        values = [second[key] - value for key, value in first.items() if key in second]
        mean = sum(values) / len(values)
        error = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
        result = paired(pd.Series(first), pd.Series(second), 0.9)
        assert result and result.number == len(values), trial
        assert (result.mean, result.p) == pytest.approx((mean, tail(mean / error, len(values) - 1)), abs=1e-9), trial
        half = (result.high - result.low) / 2
        assert result.low + half == pytest.approx(mean), trial
        assert tail(half / error, len(values) - 1) == pytest.approx(0.1), trial


def test_too_few_items_and_equal_differences_prove_nothing() -> None:
    first = pd.Series({"a": 0.1, "b": 0.2})
    assert paired(first, pd.Series({"a": 0.6, "c": 0.6}), 0.95) is None
    equal = paired(first, first + 0.2, 0.95)
    assert equal and equal.p == 1.0 and equal.low == equal.high == pytest.approx(0.2)


def test_holm_is_the_closed_test_of_all_subsets() -> None:
    """The closure that Holm shortens: rejected where every subset with it has a Bonferroni rejection."""
    for trial in range(20):
        p = np.random.default_rng(trial).random(5) ** 3
        subsets = [[j for j in range(5) if subset >> j & 1] for subset in range(1, 32)]
        bonferroni = [(some, min(1.0, min(p[j] for j in some) * len(some))) for some in subsets]
        worst = [max(value for some, value in bonferroni if i in some) for i in range(5)]
        assert holm(p.tolist()) == pytest.approx(worst), trial


def test_the_numbers_of_a_sweep_are_those_that_were_recorded(tmp_path: Path) -> None:
    """Differences, intervals, p values and Holm's correction of each pair of neighbours, by prompt and by seed."""
    recorded = json.loads((TESTS / "golden" / "compare_differences.json").read_text())
    rows = [
        [d.pair.step, d.where, d.over, d.paired.number, *d.paired[:4], d.holm]
        for d in differences(write(tmp_path, grid((10, 100, 1000), (1e-5, 2e-5), (0, 1))))
        if d.paired
    ]
    assert [row[:4] for row in rows] == [row[:4] for row in recorded]
    assert [row[4:] for row in rows] == [pytest.approx(row[4:], rel=1e-12, abs=1e-15) for row in recorded]


RATES = ("1e-5", "2e-5")

# Win rates -----------------------------------------------------------------------------------------------------------


def test_neighbours_are_next_to_each_other_in_one_key_and_iterations_follow_each_other(tmp_path: Path) -> None:
    """Any two words are neighbours."""
    pairs = [(d.pair.step, d.where) for d in differences(write(tmp_path, grid((10, 1, 100), (1e-5, 2e-5))))]
    assert sorted(pairs) == sorted([
        *((f"η {step}", f"lr {lr}, iteration {t}") for step in ("1 → 10", "10 → 100") for lr in RATES for t in (1, 2)),
        *(("lr 1e-5 → 2e-5", f"η {eta}, iteration {t}") for eta in (1, 10, 100) for t in (1, 2)),
        *(("iteration 1 → 2", f"η {eta}, lr {lr}") for eta in (1, 10, 100) for lr in RATES),
    ])  # fmt: skip
    words = write(tmp_path / "words", [MadeUpRun(method=name, iterations=1) for name in ("sppo", "sppo_single", "dpo")])
    assert sorted(d.pair.step for d in differences(words)) == [
        "method dpo → sppo", "method dpo → sppo_single", "method sppo → sppo_single"
    ]  # fmt: skip


def test_another_base_ranker_or_held_out_set_gives_a_reason_and_no_number(tmp_path: Path) -> None:
    for reason, other in {
        "base/policy": MadeUpRun(model="big", iterations=1),
        "base/answers_ranking": MadeUpRun(ranker="pairrm", iterations=1),
        "held_out/prompts": MadeUpRun(10, questions="others", iterations=1),
    }.items():
        comparison = compare_folders(write(tmp_path / reason, [MadeUpRun(iterations=1), other]), "x")
        (difference,) = win_rate_differences(comparison)
        assert difference.paired is None and difference.holm is None and not difference.differs
        assert f"other {reason}" in difference.reason and len(comparison.measurements) == 2


# Benchmarks ----------------------------------------------------------------------------------------------------------


def test_benchmarks_are_paired_by_item_task_by_task_and_corrected_together(tmp_path: Path) -> None:
    """What one task gains and the other loses is no zero. The start policy's scores are one artifact of two points."""
    runs, random = write(tmp_path, grid([100, 1000], [1e-5], iterations=1)), np.random.default_rng(5)
    start = random.random(ITEMS)
    for number, run in enumerate(runs):
        gain = np.where(np.arange(ITEMS) % 2 == 0, 0.5, -0.5) * number
        put(run, "it1/open_llm_v1", random.random(ITEMS) + gain, columns=("arc", "mmlu"))
        put(run, "base/ifeval", start)
        put(run, "it1/ifeval", random.random(ITEMS))
    tested = benchmark_differences(compare_folders(runs, "x"))
    eta, iteration = "η 100 → 1000", "iteration 0 → 1"
    assert [(one.benchmark, one.pair.step) for one in tested] == [
        ("ifeval", eta), ("open_llm_v1: arc", eta), ("open_llm_v1: mmlu", eta), *[("ifeval", iteration)] * 2
    ]  # fmt: skip
    tables = [pd.read_parquet(run / "artifacts/it1/open_llm_v1/scores/rows.parquet") for run in runs]
    for one, task in zip(tested[1:3], ("arc", "mmlu"), strict=True):
        first, second = (table[table["column"] == task]["score"] for table in tables)
        assert one.paired and one.paired.p == pytest.approx(stats.ttest_rel(second, first).pvalue)
        assert one.paired.mean == pytest.approx(second.mean() - first.mean())
        assert one.paired.number == ITEMS // 2 and one.differs
    assert [one.holm for one in tested] == pytest.approx(holm([one.paired.p for one in tested if one.paired]))


def test_other_questions_settings_and_opponents_are_not_compared_but_other_seeds_are(tmp_path: Path) -> None:
    """A win rate over one's own start policy is none over another's."""
    points = {"eta": grid([100, 1000], [1e-5], iterations=1),
              "model": [MadeUpRun(model="small", iterations=1), MadeUpRun(model="large", iterations=1)]}  # fmt: skip
    for number, (axis, reads, other, comparable) in enumerate((
        ("eta", [], {"seed": 3}, True),
        ("eta", [], {"temperature": 1.0}, False),
        ("eta", [], {"questions": "others"}, False),
        ("eta", ["it1/answers", "base/answers"], {}, True),
        ("model", [], {}, True),
        ("model", ["it1/answers", "base/answers"], {}, False),
    )):  # fmt: skip
        first, second = write(tmp_path / str(number), points[axis])
        put(first, "it1/ifeval", [0.1, 0.5, 0.2], reads=reads)
        put(second, "it1/ifeval", [0.5, 0.6, 0.2], reads=reads, **other)
        (tested,) = benchmark_differences(compare_folders([first, second], "x"))
        assert (tested.paired is not None) == comparable == (not tested.reason), (axis, other)
