"""The verb `score`: what it prints and writes, and how it tells several models and judges apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mt_bench_made_up import CATEGORY, changed, copied, judged_file, judgments, scores_of
from tiny_run import call, typed_point

from src.kernel.config import UserError
from src.launch.score import score, split_words

MT = "benchmark=mt_bench"


def scored(place: Path, path: Path | str, *words: str) -> dict[str, dict[str, float]]:
    """What `python -m src.main score benchmark=mt_bench *words` writes of a file."""
    out = place / "found.json"
    own, left = split_words([MT, *words, f"from={path}", f"out={out}"])
    assert score([typed_point(*left)], own) == 0
    return json.loads(out.read_text())


def test_the_command_prints_and_writes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, out = judged_file(tmp_path, judgments()), tmp_path / "found.json"
    assert call("score", MT, f"from={path}", f"out={out}") == 0, capfd.readouterr().err
    assert json.loads(out.read_text()) == {"m, judged by gpt-4": scores_of(path)[0]}
    assert "MT-Bench" in capfd.readouterr().out


def test_questions_of_ones_own_and_the_first_of_each_category(tmp_path: Path) -> None:
    """Eight judged questions are whole where `first` says so; a file of questions has categories of its own."""
    eight = {q: CATEGORY[q] for q in range(81, 161, 10)}
    rows = [row | {"score": row["question_id"] % 7} for row in judgments() if row["question_id"] in eight]
    path = judged_file(tmp_path, rows)
    words = ("benchmark.mt_bench.first=1", "held_out.confidence=0.5")
    (found,) = scored(tmp_path, path, *words).values()
    assert found == scores_of(path, categories=eight, confidence=0.5)[0] and found["questions"] == 8
    with pytest.raises(UserError, match="no judgment, such as question 82"):
        scored(tmp_path, path)
    _, paths = copied(tmp_path / "own")
    changed(paths["questions"], lambda lines: lines.__setitem__(slice(None), [lines[0] | {"category": "law"}]))
    own = ["benchmark.mt_bench.files.package=null", f"benchmark.mt_bench.files.questions={paths['questions']}"]
    (law,) = scored(tmp_path, judged_file(tmp_path, rows[:2]), *own).values()
    assert law["law"] == law["score"] == 81 % 7 and law["questions"] == 1


def test_models_and_judges_are_told_apart_and_files_of_both_are_read_as_one(tmp_path: Path) -> None:
    two = [row | {"model": "n", "score": 8} for row in judgments()]
    other = [row | {"judge": ["x", "single-v1"], "score": 9} for row in judgments()]
    found = scored(tmp_path, judged_file(tmp_path, judgments() + two + other))
    expected = {"m, judged by gpt-4": 5, "n, judged by gpt-4": 8, "m, judged by x": 9}
    assert {label: one["score"] for label, one in found.items()} == expected
    (again := tmp_path / "again").mkdir()
    paths = f"{judged_file(tmp_path, judgments())},{judged_file(again, judgments(lambda q, turn: 6))}"
    (both,) = scored(tmp_path, paths).values()
    assert (both["score"], both["doubled"]) == (5.5, 160)
