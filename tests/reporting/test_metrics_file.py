"""metrics.jsonl follows from the artifacts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from made_up_run import STEPS, made_up

from src.kernel.artifact import WORK
from src.kernel.rows import Row
from src.reporting.metrics_file import METRICS, write_metrics


def lines(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def kind(row: Row) -> tuple[int, str]:
    """Iteration and stage of a row of metrics."""
    (stage,) = {name.split("/")[0] for name in row if name not in ("iteration", "artifact")}
    return row["iteration"], stage


def test_there_is_a_row_a_training_step_and_one_an_evaluation_in_the_order_of_the_run(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    write_metrics(story.nodes, story.store, story.folder)
    rows = lines(story.folder)
    iteration = ["ranking", "pairs", *["train"] * STEPS, "evaluation", "divergence"]
    assert [kind(row) for row in rows] == [(t, stage) for t in (1, 2) for stage in iteration]
    assert [row["train/step"] for row in rows if kind(row) == (2, "train")] == [1, 2, 3]
    assert all((story.store.root / row["artifact"]).is_dir() for row in rows)
    assert len({row["artifact"] for row in rows}) == 2 * len(set(iteration))
    assert rows[2]["train/loss_scaled"] == 0.5
    assert rows[5]["evaluation/win_over_base_low"] == pytest.approx(0.55)
    assert rows[-1]["divergence/kl_per_token"] == 0.25


def test_metrics_are_rebuilt_to_the_byte_and_grow_at_the_end(tmp_path: Path) -> None:
    """Artifacts come in the order of the plan, so that a longer file starts with the shorter one."""
    story, before = made_up(tmp_path), b""
    kept = tmp_path / "kept"
    shutil.move(story.store.root, kept)
    for node in story.nodes:
        shutil.copytree(kept / node.stage.kind / node.key, story.store.path(node))
        for _ in range(2):
            write_metrics(story.nodes, story.store, story.folder)
        content = (story.folder / METRICS).read_bytes()
        assert content.startswith(before)
        before = content
    assert before.count(b"\n") == 2 * (STEPS + 4)


def test_rows_end_at_the_first_missing_artifact(tmp_path: Path) -> None:
    """In a shared store later ones may exist already; their rows must not come before those still to be made."""
    story = made_up(tmp_path)
    write_metrics(story.nodes, story.store, story.folder)
    whole = (story.folder / METRICS).read_bytes()
    (first,) = [node for node in story.nodes if node.name == "it1/policy"]
    shutil.rmtree(story.store.path(first))
    write_metrics(story.nodes, story.store, story.folder)
    content = (story.folder / METRICS).read_bytes()
    assert whole.startswith(content) and content.count(b"\n") == 2


def test_steps_of_a_training_under_way_are_rows_already(tmp_path: Path) -> None:
    """From the working folder of the first missing artifact; nothing of what lies behind it."""
    story = made_up(tmp_path)
    write_metrics(story.nodes, story.store, story.folder)
    whole = lines(story.folder)
    (first,) = [node for node in story.nodes if node.name == "it1/policy"]
    attempt = story.store.path(first).with_name(f"{first.key}.partial-00000000")
    attempt.mkdir()
    shutil.move(story.store.path(first), attempt / WORK)
    for made in (STEPS, 1):
        write_metrics(story.nodes, story.store, story.folder)
        assert lines(story.folder) == whole[: 2 + made]
        steps = attempt / WORK / METRICS
        steps.write_text(steps.read_text().splitlines(keepends=True)[0])
