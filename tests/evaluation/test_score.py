"""The verb `score`: what it goes by, what it refuses, and how it tells several models and judges apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mt_bench_made_up import CATEGORY, changed, copied, judged_file, judgments, scores_of
from tiny_run import call, typed_point

from src.kernel.config import UserError
from src.launch.score import score, split_words

MT, ALPACA = "benchmark=mt_bench", "benchmark=alpaca_eval"


def scored(place: Path, path: Path, *words: str) -> dict[str, dict[str, float]]:
    """What `python -m src.main score *words` writes of a file."""
    out = place / "found.json"
    own, left = split_words([*words, f"from={path}", f"out={out}"])
    assert score([typed_point(*left)], own) == 0
    return json.loads(out.read_text())


def test_the_command_prints_and_writes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, out = judged_file(tmp_path, judgments()), tmp_path / "found.json"
    assert call("score", MT, f"from={path}", f"out={out}") == 0, capfd.readouterr().err
    assert json.loads(out.read_text()) == {"m": scores_of(path).metrics}
    assert "MT-Bench" in capfd.readouterr().out


UNREAD = [
    (ALPACA, "benchmark.alpaca_eval.judge.endpoint.model=x"),
    (MT, "~benchmark.mt_bench.temperatures.math"),
    ("+benchmark@benchmark.mine=mt_bench", "benchmark.mine.best_of=2"),
    (MT, "seed=3"),
]


def test_a_key_that_it_does_not_go_by_is_refused_by_name(tmp_path: Path) -> None:
    path = judged_file(tmp_path, judgments())
    for benchmark, word in UNREAD:
        key = word.partition("=")[0].lstrip("+~")
        with pytest.raises(UserError, match=rf"^{key}: score does not go by it; it reads benchmark\.\w+\.\w+"):
            scored(tmp_path, path, benchmark, word)
        assert not (tmp_path / "found.json").exists()


def test_questions_of_ones_own_and_the_first_of_each_category(tmp_path: Path) -> None:
    """Eight judged questions are whole where `first` says so; a file of questions has categories of its own."""
    eight = {q: CATEGORY[q] for q in range(81, 161, 10)}
    rows = [row | {"score": row["question_id"] % 7} for row in judgments() if row["question_id"] in eight]
    path = judged_file(tmp_path, rows)
    found = scored(tmp_path, path, MT, "benchmark.mt_bench.first=1")
    assert found == {"m": scores_of(path, categories=eight).metrics} and found["m"]["questions"] == 8
    with pytest.raises(UserError, match="no judgment of question 82"):
        scored(tmp_path, path, MT)
    _, paths = copied(tmp_path / "own")
    changed(paths["questions"], lambda lines: lines.__setitem__(slice(None), [lines[0] | {"category": "law"}]))
    own = ["benchmark.mt_bench.files.package=null", f"benchmark.mt_bench.files.questions={paths['questions']}"]
    law = scored(tmp_path, judged_file(tmp_path, rows[:2]), MT, *own)["m"]
    assert law["law"] == law["score"] == 81 % 7 and law["questions"] == 1


def test_intervals_are_at_the_confidence_that_is_asked_for(tmp_path: Path) -> None:
    path = judged_file(tmp_path, judgments(lambda q, turn: q % 10))
    assert scored(tmp_path, path, MT, "held_out.confidence=0.5")["m"] == scores_of(path, confidence=0.5).metrics


def test_models_and_judges_of_a_file_are_told_apart(tmp_path: Path) -> None:
    two = [row | {"model": "n", "score": 8} for row in judgments()]
    assert list(scored(tmp_path, judged_file(tmp_path, judgments() + two), MT)) == ["m", "n"]
    other = [row | {"judge": ["x", "single-v1"], "score": 9} for row in judgments()]
    found = scored(tmp_path, judged_file(tmp_path, judgments() + other), MT)
    assert {label: one["score"] for label, one in found.items()} == {"m, judged by gpt-4": 5, "m, judged by x": 9}
    (again := tmp_path / "again").mkdir()
    paths = f"{judged_file(tmp_path, judgments())},{judged_file(again, judgments(lambda q, turn: 6))}"
    (found,) = scored(tmp_path, Path(paths), MT).values()
    assert (found["score"], found["doubled"]) == (5.5, 160), "files of one model and judge are read as one"
