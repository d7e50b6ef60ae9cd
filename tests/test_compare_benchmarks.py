"""Benchmarks in a comparison: values, paired differences, and what must not be compared.

Run: python -m pytest -q tests/test_compare_benchmarks.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_sweep import grid, write
from scipy import stats
from tiny_run import call

from src.compare.benchmarks import contrasts, results_table
from src.compare.points import compare_folders
from src.config import UserError

ITEMS = 40


def put(run: Path, name: str, values: Sequence[float], questions: str = "a" * 20, **config: Any) -> Path:
    """Scores of a benchmark in a run folder, as `it1/ifeval` and one score an item."""
    mean, half = float(np.mean(values)), 1.5
    place, shared = run / "artifacts" / name / "scores", run / "artifacts" / name.partition("/")[2] / "questions"
    for folder, key, kind in ((place, "b" * 20, "scores"), (shared, questions, "questions")):
        target = run.parent.parent / "store" / kind / key if kind == "questions" else run / "own" / name
        target.mkdir(parents=True, exist_ok=True)
        record = {"name": name, "version": 1, "config": config, "inputs": [], "seconds": 1.0, "workload": "x y z 1"}
        record |= {"files": {}, "key": key, "commit": "c", "versions": {}, "kind": kind}
        (target / "record.json").write_text(json.dumps(record))
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.is_symlink():
            folder.symlink_to(target.resolve())
    numbers = {"prompt_strict": mean, "prompt_strict_low": mean - half, "prompt_strict_high": mean + half}
    (place / "metrics.json").write_text(json.dumps({"items": len(values)} | numbers | {"unread": None}))
    rows = [{"item_id": f"i{i}", "score": float(value)} for i, value in enumerate(values)]
    pq.write_table(pa.Table.from_pylist(rows), place / "rows.parquet")
    return place


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Runs that differ in eta, two iterations each, with a benchmark at base, 1 and 2."""
    runs = write(tmp_path, grid([100, 1000], [1e-5], iterations=2))
    for number, run in enumerate(runs):
        for t, policy in enumerate(("base", "it1", "it2")):
            random = np.random.default_rng([7 if policy == "base" else number, t])
            put(run, f"{policy}/ifeval", random.random(ITEMS) + 0.4 * t * number)
    return runs


def test_runs_are_paired_by_item_at_their_last_iteration_and_iterations_with_each_other(two: list[Path]) -> None:
    found = compare_folders(two, "t")
    tested = contrasts(found)
    between = [one for one in tested if one.points[0] is not one.points[1]]
    assert [(one.benchmark, one.step) for one in between] == [("ifeval", "η 100 → 1000")]
    scores = [pq.read_table(run / "artifacts/it2/ifeval/scores/rows.parquet").column("score").to_numpy() for run in two]
    assert between[0].paired.mean == pytest.approx(scores[1].mean() - scores[0].mean())
    assert between[0].paired.p == pytest.approx(stats.ttest_rel(scores[1], scores[0]).pvalue)
    assert between[0].differs and between[0].paired.number == ITEMS
    assert [one.step for one in tested if one not in between] == ["iteration 0 → 1", "iteration 1 → 2"] * 2
    assert [one.holm for one in tested] == pytest.approx(slow_holm([one.paired.p for one in tested]))


def slow_holm(p_values: list[float]) -> list[float]:
    """Each p against all that are not smaller: the highest of those corrections up to it."""
    count = len(p_values)
    by_size = sorted(p_values)
    steps = [min(1.0, p * (count - i)) for i, p in enumerate(by_size)]
    return [max(steps[: by_size.index(p) + 1]) for p in p_values]


def test_a_table_has_a_row_a_run_iteration_and_number_with_an_interval(two: list[Path]) -> None:
    table = results_table(compare_folders(two, "t"))
    assert len(table.rows) == 6 and {row[2].text for row in table.rows} == {"ifeval"}
    assert {row[4].text for row in table.rows} == {"prompt strict"}, "what has no interval is not shown"
    assert [row[3].text for row in table.rows] == ["0", "1", "2"] * 2


@pytest.mark.parametrize(("other", "comparable"), [({"questions": "c" * 20}, False), ({"temperature": 1.0}, False),
                                                   ({"seed": 3}, True), ({}, True)])  # fmt: skip
def test_other_questions_or_settings_are_not_compared_but_other_seeds_are(
    tmp_path: Path, other: dict[str, Any], comparable: bool
) -> None:
    first, second = write(tmp_path, grid([100, 1000], [1e-5], iterations=1))
    put(first, "it1/ifeval", np.linspace(0, 1, 5))
    put(second, "it1/ifeval", np.linspace(0, 1, 5) ** 2, **other)
    (one,) = contrasts(compare_folders([first, second], "t"))
    assert (one.paired is not None) == comparable
    assert comparable or "not comparable: other questions" in one.reason


def test_runs_without_a_training_can_be_compared_on_a_benchmark_alone(tmp_path: Path) -> None:
    runs = write(tmp_path, grid([100, 1000], [1e-5], iterations=0))
    for number, run in enumerate(runs):
        put(run, "base/mt_bench", [1.0 + number, 2.0, 3.0 + number])
    assert call("compare", f"runs={tmp_path}/runs/*", f"out={tmp_path}/out") == 0
    text, page = (tmp_path / "out" / "compare.md").read_text(), (tmp_path / "out" / "index.html").read_text()
    assert "## Benchmarks" in text and "mt\\_bench" in text and "Differences on benchmarks" in page


def test_scores_that_cannot_be_read_are_named(two: list[Path]) -> None:
    place = two[0] / "artifacts/it1/ifeval/scores"
    (place / "rows.parquet").write_text("no table")
    with pytest.raises(UserError, match="it1/ifeval/scores/rows.parquet: cannot be read"):
        compare_folders(two, "t")


def test_contrasts_of_nothing_are_none(tmp_path: Path) -> None:
    found = compare_folders(write(tmp_path, grid([100, 1000], [1e-5])), "t")
    assert contrasts(found) == [] and results_table(found).rows == []
