"""The verb `score`: what it prints and writes, and that several models and judges are kept apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mt_bench_made_up import CATEGORY, judged_file, judgments, scores_of
from tiny_run import call, typed_point

from src.kernel.config import UserError
from src.launch.score import score, split_words

MT = "benchmark=mt_bench"


def scored(place: Path, path: Path | str, *words: str) -> dict[str, dict[str, float]]:
    """The numbers that `python -m src.main score benchmark=mt_bench *words` writes for a file."""
    out = place / "scores.json"
    options, left = split_words([MT, *words, f"from={path}", f"out={out}"])
    assert score([typed_point(*left)], options) == 0
    return json.loads(out.read_text())


def test_the_command_prints_and_writes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, out = judged_file(tmp_path, judgments()), tmp_path / "scores.json"
    assert call("score", MT, f"from={path}", f"out={out}") == 0, capfd.readouterr().err
    assert json.loads(out.read_text()) == {"m, judged by gpt-4": scores_of(path)[0]}
    assert "MT-Bench" in capfd.readouterr().out


def test_the_first_questions_of_each_category_may_be_all(tmp_path: Path) -> None:
    eight = {q: CATEGORY[q] for q in range(81, 161, 10)}
    rows = [row | {"score": row["question_id"] % 7} for row in judgments() if row["question_id"] in eight]
    path = judged_file(tmp_path, rows)
    (numbers,) = scored(tmp_path, path, "benchmark.mt_bench.first=1", "held_out.confidence=0.5").values()
    assert numbers == scores_of(path, categories=eight, confidence=0.5)[0] and numbers["questions"] == 8
    with pytest.raises(UserError, match="no judgment, such as question 82"):
        scored(tmp_path, path)


def test_models_and_judges_are_kept_apart_and_files_of_both_are_read_as_one(tmp_path: Path) -> None:
    two = [row | {"model": "n", "score": 8} for row in judgments()]
    other = [row | {"judge": ["x", "single-v1"], "score": 9} for row in judgments()]
    numbers = scored(tmp_path, judged_file(tmp_path, judgments() + two + other))
    expected = {"m, judged by gpt-4": 5, "n, judged by gpt-4": 8, "m, judged by x": 9}
    assert {label: one["score"] for label, one in numbers.items()} == expected
    (again := tmp_path / "again").mkdir()
    paths = f"{judged_file(tmp_path, judgments())},{judged_file(again, judgments(lambda q, turn: 6))}"
    (both,) = scored(tmp_path, paths).values()
    assert (both["score"], both["doubled"]) == (5.5, 160)
