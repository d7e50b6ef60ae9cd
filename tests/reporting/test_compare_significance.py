"""Differences of neighbours against a slow plain twin; who is a neighbour; what cannot be compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up_sweep import ITEMS, Made, grid, put, write
from places import TESTS
from scipy import integrate, stats

from src.reporting.compare.points import compare_folders
from src.reporting.compare.significance import Difference, benchmark_differences, holm, paired, win_rate_differences


def differences(folders: list[Path]) -> list[Difference]:
    return win_rate_differences(compare_folders(folders, "x"))


def on_benchmarks(folders: list[Path]) -> list[Difference]:
    return benchmark_differences(compare_folders(folders, "x"))


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
        found = paired(pd.Series(first), pd.Series(second), 0.9)
        assert found and found.number == len(values), trial
        assert (found.mean, found.p) == pytest.approx((mean, tail(mean / error, len(values) - 1)), abs=1e-9), trial
        half = (found.high - found.low) / 2
        assert found.low + half == pytest.approx(mean), trial
        assert tail(half / error, len(values) - 1) == pytest.approx(0.1), trial


def test_too_few_items_and_equal_differences_prove_nothing() -> None:
    def found(first: dict[str, float], second: dict[str, float]) -> Any:
        return paired(pd.Series(first), pd.Series(second), 0.95)

    assert found({"a": 0.5}, {"a": 0.6}) is None and found({"a": 0.5, "b": 0.5}, {"c": 0.6, "d": 0.5}) is None
    assert found({"a": 0.25, "b": 0.5}, {"a": 0.25, "b": 0.5}) == (0.0, 0.0, 0.0, 1.0, 2)
    rounded = found({"a": 0.1, "b": 0.2}, {"a": 0.1 + 0.2, "b": 0.2 + 0.2})
    assert rounded.p == 1.0 and rounded.mean == pytest.approx(0.2)


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


# Win rates -----------------------------------------------------------------------------------------------------------


def constant(made: Made, t: int) -> np.ndarray:
    """Each prompt wins .3 + .1 log10(eta) + .05 t, plus what is the prompt's own."""
    easy = np.array([-0.1, 0.0, 0.1, 0.05, -0.05])
    wobble = np.array([0.001, -0.001, 0.002, -0.002, 0.0]) * (t + made.eta)
    return 0.3 + 0.1 * np.log10(made.eta) + 0.05 * t + easy + wobble + 0.01 * made.seed


def test_neighbours_are_next_to_each_other_in_one_key_and_iterations_follow_each_other(tmp_path: Path) -> None:
    pairs = [(d.pair.step, d.where) for d in differences(write(tmp_path, grid((10, 1, 100), (1e-5, 2e-5)), constant))]
    assert [pairs.count((f"η {a} → {b}", f"lr {lr}, iteration {t}"))
            for a, b in ((1, 10), (10, 100)) for lr in ("1e-5", "2e-5") for t in (1, 2)] == [1] * 8  # fmt: skip
    assert sum(step == "lr 1e-5 → 2e-5" for step, _ in pairs) == 6
    assert sum(step == "iteration 1 → 2" for step, _ in pairs) == 6
    assert len(pairs) == 20, "and η 1 → 100 is none"
    eta, *_ = differences(write(tmp_path / "two", grid((1, 10), (1e-5,)), constant))
    assert eta.paired and eta.paired.mean == pytest.approx(0.1, abs=1e-3), "a prompt's own ease is no noise"
    assert [eta._replace(holm=p).differs for p in (0.049, 0.05, None)] == [True, False, False]
    words = write(tmp_path / "words", [Made(method=name, iterations=1) for name in ("sppo", "sppo_single", "dpo")])
    assert sorted(d.pair.step for d in differences(words)) == [
        "method dpo → sppo", "method dpo → sppo_single", "method sppo → sppo_single"
    ]  # fmt: skip


def test_another_base_ranker_or_held_out_set_gives_a_reason_and_no_number(tmp_path: Path) -> None:
    for other, reason in ((Made(model="big", iterations=1), "base/policy"),
                          (Made(ranker="pairrm", iterations=1), "base/answers_ranking")):  # fmt: skip
        comparison = compare_folders(write(tmp_path / other.model / other.ranker, [Made(iterations=1), other]), "x")
        (difference,) = win_rate_differences(comparison)
        assert difference.paired is None and difference.holm is None and not difference.differs
        assert f"other {reason}" in difference.reason and len(comparison.yardsticks) == 2
    folders = write(tmp_path, [Made(1), Made(10, questions="others")])
    assert {each.reason for each in differences(folders) if each.pair.key != "iteration"} == {
        "not comparable: other held_out/prompts"
    }


def test_over_seeds_a_pair_of_runs_is_one_observation(tmp_path: Path) -> None:
    comparison = compare_folders(write(tmp_path, grid((1, 10), (1e-5,), (0, 1, 2), iterations=1)), "x")
    *by_prompt, by_seed = win_rate_differences(comparison)
    one, two = ([run.steps[0].numbers["win_over_base"] for run in point.runs] for point in comparison.points)
    assert by_seed.over == "seeds" and by_seed.paired and by_seed.paired.number == 3 == len(by_prompt)
    assert by_seed.paired.p == pytest.approx(stats.ttest_rel(two, one).pvalue)
    assert by_seed.holm == by_seed.paired.p, "corrected for its own kind"
    assert [d.holm for d in by_prompt] == pytest.approx(holm([d.paired.p for d in by_prompt if d.paired]))


# Benchmarks ----------------------------------------------------------------------------------------------------------


def test_runs_are_paired_by_item_and_iterations_with_each_other(tmp_path: Path) -> None:
    """One artifact of two points, such as the start policy's scores, is not compared with itself."""
    runs = write(tmp_path, grid([100, 1000], [1e-5], iterations=2))
    for number, run in enumerate(runs):
        for t, policy in enumerate(("base", "it1", "it2")):
            random = np.random.default_rng([7 if policy == "base" else number, t])
            put(run, f"{policy}/ifeval", random.random(ITEMS) + 0.4 * t * number)
    tested = on_benchmarks(runs)
    steps = [(one.pair.step, one.where) for one in tested[:2]]
    assert steps == [("η 100 → 1000", "iteration 1"), ("η 100 → 1000", "iteration 2")]
    assert [one.pair.step for one in tested[2:]] == ["iteration 0 → 1", "iteration 1 → 2"] * 2
    scores = [pd.read_parquet(run / "artifacts/it2/ifeval/scores/rows.parquet")["score"] for run in runs]
    assert tested[1].paired.mean == pytest.approx(scores[1].mean() - scores[0].mean())
    assert tested[1].paired.p == pytest.approx(stats.ttest_rel(scores[1], scores[0]).pvalue)
    assert tested[1].differs and tested[1].paired.number == ITEMS
    assert [one.holm for one in tested] == pytest.approx(holm([one.paired.p for one in tested]))


def test_items_of_several_tasks_are_compared_task_by_task(tmp_path: Path) -> None:
    """What one gains and the other loses is no zero; Holm corrects for both, and for the other benchmark."""
    runs = write(tmp_path, grid([100, 1000], [1e-5], iterations=1))
    random = np.random.default_rng(5)
    for number, run in enumerate(runs):
        gain = np.where(np.arange(ITEMS) % 2 == 0, 0.5, -0.5) * number
        put(run, "it1/open_llm_v1", random.random(ITEMS) + gain, columns=("arc", "mmlu"))
        put(run, "it1/ifeval", random.random(ITEMS))
    tested = {one.benchmark: one for one in on_benchmarks(runs)}
    assert set(tested) == {"ifeval", "open_llm_v1: arc", "open_llm_v1: mmlu"}
    tables = [pd.read_parquet(run / "artifacts/it1/open_llm_v1/scores/rows.parquet") for run in runs]
    for task in ("arc", "mmlu"):
        first, second = (table[table["column"] == task]["score"] for table in tables)
        one = tested[f"open_llm_v1: {task}"]
        assert one.paired.p == pytest.approx(stats.ttest_rel(second, first).pvalue)
        assert one.paired.number == ITEMS // 2 and one.differs
    assert [one.holm for one in tested.values()] == pytest.approx(holm([one.paired.p for one in tested.values()]))


def compared(place: Path, points: list[Made], name: str, *more: dict[str, Any]) -> list[bool]:
    """Whether each contrast of runs with these scores has a number; `more` is of the scores of the last one."""
    runs = write(place, points)
    for number, run in enumerate(runs):
        rest = more[0] if more and run is runs[-1] else {}
        reads = rest.get("reads", ["it1/answers", "base/answers"] if name == "win_matrix" else [])
        put(run, f"it1/{name}", np.random.default_rng(number).random(5), **(rest | {"reads": reads}))
    found = on_benchmarks(runs)
    assert all(one.paired is not None or one.reason.startswith("not comparable: ") for one in found)
    return [one.paired is not None for one in found]


def test_other_questions_settings_and_opponents_are_not_compared_but_other_seeds_are(tmp_path: Path) -> None:
    """A win rate over one's own start policy is none over another's; a policy alone is measured on its own."""
    two = grid([100, 1000], [1e-5], iterations=1)
    for number, (other, comparable) in enumerate([({"questions": "c" * 20}, False), ({"temperature": 1.0}, False),
                                                  ({"seed": 3}, True), ({}, True)]):  # fmt: skip
        assert compared(tmp_path / str(number), two, "ifeval", other) == [comparable], other
    models = [Made(model="small", iterations=1), Made(model="large", iterations=1)]
    assert compared(tmp_path / "models", models, "win_matrix") == [False]
    assert compared(tmp_path / "alone", models, "ifeval") == [True]
    sweep = grid([100, 1000], [1e-5], seeds=(0, 1), iterations=1)
    assert compared(tmp_path / "sweep", sweep, "win_matrix") == [True, True]
