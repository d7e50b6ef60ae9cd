"""metrics.jsonl follows from the artifacts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from made_up_run import STEPS, MadeUp, made_up

from src.kernel.artifact import WORK
from src.kernel.rows import Row
from src.reporting.metrics_file import METRICS, write_metrics


def written(story: MadeUp) -> list[Row]:
    write_metrics(story.nodes, story.store, story.folder)
    return [json.loads(line) for line in (story.folder / METRICS).read_text().splitlines()]


def stage(row: Row) -> str:
    (stage,) = {name.split("/")[0] for name in row if name not in ("iteration", "artifact")}
    return stage


def test_there_is_a_row_a_training_step_and_one_an_evaluation_in_the_order_of_the_run(tmp_path: Path) -> None:
    rows = written(story := made_up(tmp_path))
    iteration = ["ranking", "pairs", *["train"] * STEPS, "evaluation", "divergence"]
    assert [(row["iteration"], stage(row)) for row in rows] == [(t, name) for t in (1, 2) for name in iteration]
    assert [row["train/step"] for row in rows if stage(row) == "train"] == [1, 2, 3] * 2
    assert all((story.store.root / row["artifact"]).is_dir() for row in rows)
    assert rows[2]["train/loss_scaled"] == 0.5 and rows[-1]["divergence/kl_per_token"] == 0.25
    assert rows[5]["evaluation/win_over_base_low"] == pytest.approx(0.55)


def test_metrics_are_rebuilt_to_the_byte_and_grow_at_the_end(tmp_path: Path) -> None:
    """Artifacts come in the order of the plan, so that a longer file starts with the shorter one."""
    story, before = made_up(tmp_path), b""
    shutil.move(story.store.root, kept := tmp_path / "kept")
    for node in story.nodes:
        shutil.copytree(kept / node.stage.kind / node.key, story.store.path(node))
        assert written(story) == written(story)
        content = (story.folder / METRICS).read_bytes()
        assert content.startswith(before)
        before = content
    assert before.count(b"\n") == 2 * (STEPS + 4)


def test_rows_end_at_the_first_missing_artifact_whose_steps_under_way_are_rows_already(tmp_path: Path) -> None:
    """In a shared store later ones may exist already; a line of the steps may be half written."""
    whole = written(story := made_up(tmp_path))
    policy = story.path("it1/policy")
    attempt = policy.with_name(f"{policy.name}.partial-00000000")
    shutil.move(policy, attempt)
    assert written(story) == whole[:2]
    shutil.copytree(attempt, attempt / WORK)
    assert written(story) == whole[: 2 + STEPS]
    steps = (attempt / WORK / METRICS).read_bytes()
    (attempt / WORK / METRICS).write_bytes(steps[:-20])
    assert written(story) == whole[: 1 + STEPS]
