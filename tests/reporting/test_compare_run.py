"""`compare` on a real sweep: two points of tiny models, made by the real command."""

from __future__ import annotations

import csv
import json
import math
from html import unescape
from pathlib import Path
from statistics import fmean, stdev

import pyarrow.parquet as pq
import pytest
from scipy import stats
from tiny_run import HELD_OUT, call, tiny

from src.card.markdown import literal
from src.compare.command import compare


@pytest.mark.full
def test_a_benchmark_of_two_real_runs_is_compared_as_its_rows_say(llama: Path, tmp_path: Path) -> None:
    """Two that differ in eta, each against the start policy that they share."""
    words = tiny(llama, tmp_path, "iter=1", "train.lr=3e-2", "method.eta=10,1000", "benchmark=win_matrix")
    assert call("-m", *words) == 0
    runs, out = tmp_path / "runs", tmp_path / "out"
    (sweep,) = [path.name for path in runs.glob("sweep-2-*")]
    assert compare([f"runs={runs}/{sweep}", f"out={out}"]) == 0
    text, page = (out / "compare.md").read_text(), unescape((out / "index.html").read_text())
    with (out / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["eta"], row["iteration"]) for row in rows] == [("10", "1"), ("1000", "1")]
    scores, values = [], []
    for row in rows:
        place = runs / row["run"] / "artifacts/it1/win_matrix/scores"
        numbers = json.loads((place / "metrics.json").read_text())
        assert all(float(row[f"win_matrix/{key}"]) == value for key, value in numbers.items())
        values.append(f"{numbers['win']:.4g} [{numbers['win_low']:.4g}, {numbers['win_high']:.4g}]")
        scores.append({each["item_id"]: each["score"] for each in pq.read_table(place / "rows.parquet").to_pylist()})
    assert all(literal(value) in text and f">{value}<" in page for value in values) and values[0] != values[1]
    differences = [scores[1][item] - scores[0][item] for item in scores[0]]
    spread = stdev(differences) / math.sqrt(HELD_OUT)
    p = 2 * stats.t.sf(abs(fmean(differences) / spread), HELD_OUT - 1)
    told = [f"{fmean(differences):+.4g} [", f"{p:.4f}", str(HELD_OUT)]
    part = text.partition("## Do neighbours differ on benchmarks?")[2].partition("\n## ")[0]
    (line,) = [line for line in part.splitlines() if "win\\_matrix" in line]
    assert len(differences) == HELD_OUT and "η 10 → 1000" in line, line
    assert all(f"| {literal(each)}" in line for each in told) and told[0] in page
    assert line.count(f"| {p:.4f} ") == 2, "one contrast alone is not corrected"
