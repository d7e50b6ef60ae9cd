"""Benchmarks in a comparison: values, paired differences, and what must not be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_sweep import Made, grid, write
from scipy import stats

from src.kernel.artifact import fingerprint_hash
from src.kernel.record import read_record
from src.reporting.compare.benchmarks import contrasts, contrasts_table
from src.reporting.compare.points import compare_folders
from src.reporting.compare.significance import holm

ITEMS = 40


def put(
    run: Path,
    name: str,
    values: Sequence[float],
    questions: str = "a" * 20,
    reads: Sequence[str] = (),
    columns: Sequence[str] = (),
    **config: Any,
) -> Path:
    """Scores of a benchmark in a run folder, as `it1/ifeval`: one score an item, of the next of `columns` each; made
    from other artifacts of the run, `reads`."""
    mean, half = float(np.mean(values)), 1.5
    inputs = [read_record(run / "artifacts" / other) for other in reads]
    place, shared = run / "artifacts" / name / "scores", run / "artifacts" / name.partition("/")[2] / "questions"
    own = fingerprint_hash([name, list(map(float, values))])[:20]
    for folder, key, kind in ((place, own, "scores"), (shared, questions, "questions")):
        target = run.parent.parent / "store" / kind / key
        target.mkdir(parents=True, exist_ok=True)
        record = {"name": name, "version": 1, "config": config, "inputs": [], "seconds": 1.0, "workload": "x y z 1"}
        record |= {"files": {}, "key": key, "commit": "c", "versions": {}, "kind": kind}
        if kind == "scores":
            record["inputs"] = [{"kind": one["kind"], "key": one["key"]} for one in inputs]
        (target / "record.json").write_text(json.dumps(record))
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.unlink(missing_ok=True)
        folder.symlink_to(target.resolve())
    numbers = {"prompt_strict": mean, "prompt_strict_low": mean - half, "prompt_strict_high": mean + half}
    (place / "metrics.json").write_text(json.dumps({"items": len(values)} | numbers | {"unread": None}))
    rows = [{"item_id": f"i{i}", "score": float(value)} for i, value in enumerate(values)]
    if columns:
        rows = [row | {"column": columns[i % len(columns)]} for i, row in enumerate(rows)]
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
    assert [one.holm for one in tested] == pytest.approx(holm([one.paired.p for one in tested]))


def test_one_artifact_of_two_points_is_not_compared_with_itself(two: list[Path]) -> None:
    """Of two runs that trained the same policy; equal scores of different artifacts are compared."""
    scores = np.random.default_rng(3).random(ITEMS)
    for run in two:
        put(run, "it2/ifeval", scores)
    between = [one for one in contrasts(compare_folders(two, "t")) if one.points[0] is not one.points[1]]
    assert between == []
    put(two[1], "it2/ifeval", scores + 1)
    (between,) = [one for one in contrasts(compare_folders(two, "t")) if one.points[0] is not one.points[1]]
    assert between.paired.mean == pytest.approx(1)


def test_items_of_several_tasks_are_compared_task_by_task(tmp_path: Path) -> None:
    """What one gains and the other loses is no zero; Holm corrects for both, and for the other benchmark."""
    runs = write(tmp_path, grid([100, 1000], [1e-5], iterations=1))
    random = np.random.default_rng(5)
    for number, run in enumerate(runs):
        gain = np.where(np.arange(ITEMS) % 2 == 0, 0.5, -0.5) * number
        put(run, "it1/open_llm_v1", random.random(ITEMS) + gain, columns=("arc", "mmlu"))
        put(run, "it1/ifeval", random.random(ITEMS))
    tested = contrasts(compare_folders(runs, "t"))
    assert sorted(one.benchmark for one in tested) == ["ifeval", "open_llm_v1: arc", "open_llm_v1: mmlu"]
    tables = [pq.read_table(run / "artifacts/it1/open_llm_v1/scores/rows.parquet").to_pylist() for run in runs]
    for one in tested:
        column = one.benchmark.partition(": ")[2]
        if column:
            first, second = ([row["score"] for row in rows if row["column"] == column] for rows in tables)
            assert one.paired.p == pytest.approx(stats.ttest_rel(second, first).pvalue)
            assert one.paired.number == ITEMS // 2 and one.differs
    assert [one.holm for one in tested] == pytest.approx(holm([one.paired.p for one in tested]))
    assert "open_llm_v1: arc" in {row[0].text for row in contrasts_table(tested).rows}


def compared(place: Path, points: list[Made], name: str, *more: dict[str, Any]) -> list[bool]:
    """Whether each contrast of runs with these scores has a number; `more` is of the scores of the last one."""
    runs = write(place, points)
    for number, run in enumerate(runs):
        rest = more[0] if more and run is runs[-1] else {}
        reads = rest.get("reads", ["it1/answers", "base/answers"] if name == "win_matrix" else [])
        put(run, f"it1/{name}", np.random.default_rng(number).random(5), **(rest | {"reads": reads}))
    found = contrasts(compare_folders(runs, "t"))
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
