"""`compare` on a real sweep: two points and two seeds of tiny models, made by the real command.

Run: python -m pytest -q tests/test_compare_run.py
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from test_compare_csv import undocumented
from tiny_run import HELD_OUT, call, tiny

from src.compare.command import compare


@pytest.mark.slow
def test_a_real_sweep_is_compared_as_its_reports_say(llama: Path, tmp_path: Path) -> None:
    assert call("-m", *tiny(llama, tmp_path, "iter=1", "train.lr=1e-3", "method.eta=10,1000", "seed=0,1")) == 0
    runs = tmp_path / "runs"
    (sweep,) = [path.name for path in runs.glob("sweep-4-*")]
    assert compare([f"runs={runs}/{sweep}"]) == 0
    with (runs / f"compare-{sweep}" / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert undocumented(list(rows[0]), []) == []
    assert [(row["eta"], row["seed"], row["iteration"]) for row in rows] == [
        ("10", "0", "1"), ("10", "1", "1"), ("1000", "0", "1"), ("1000", "1", "1")
    ]  # fmt: skip
    for row in rows:
        evaluation = json.loads((runs / row["run"] / "artifacts/it1/evaluation/metrics.json").read_text())
        assert float(row["win_over_base"]) == evaluation["win_over_base"] and row["prompts"] == str(HELD_OUT)
        assert row["state"] == "finished" and float(row["run_shared_s"]) > 0
    page = (runs / f"compare-{sweep}" / "index.html").read_text()
    assert "it1/responses" in page and "not comparable" not in page, "another seed has the same yardstick"
