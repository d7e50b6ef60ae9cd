"""MT-Bench's averages and intervals, and the verb `score`, which computes them from files of judgments."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from tiny_run import call

from src.evaluation.mt_bench.scores import averages, read_judgments
from src.kernel.config import UserError
from src.kernel.rows import Row

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
CATEGORY = {question: CATEGORIES[(question - 81) // 10] for question in range(81, 161)}
"""The category of each published question."""


def judgments(score: Callable[[int, int], Any] = lambda question, turn: 5) -> list[Row]:
    """Return a judgment of both turns of all questions."""
    return [
        {"question_id": q, "model": "m", "judge": ["gpt-4", "single-v1"], "score": score(q, turn), "turn": turn}
        for q in CATEGORY
        for turn in (1, 2)
    ]


def judged_file(place: Path, rows: list[Row]) -> Path:
    path = place / "gpt-4_single.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def averaged(path: Path, confidence: float = 0.95) -> tuple[dict[str, float], list[Row]]:
    """Return the averages and the rows of model m."""
    return averages(str(path), read_judgments([path])["m", "gpt-4"], CATEGORY, confidence)


# Averages ----------------------------------------------------------------------------------------------------------


def plain_mean(rows: list[Row], keep: Callable[[int, int], bool]) -> Any:
    """Average all rated judgments, as FastChat's show_result does."""
    scores = [r["score"] for r in rows if r["score"] != -1 and r["model"] == "m" and keep(r["question_id"], r["turn"])]
    return pytest.approx(sum(scores) / len(scores), abs=1e-12)


def test_random_judgments_are_averaged_as_by_a_loop(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = judgments(lambda question, turn: rng.choice([-1, 0, 1, 7, 8.5, 10]))
    rows += rng.sample(judgments(lambda question, turn: rng.randint(1, 10)), 30)
    rows += [row | {"model": "other", "score": 10} for row in judgments()]
    rng.shuffle(rows)
    metrics, items = averaged(judged_file(tmp_path, rows))
    assert metrics["score"] == plain_mean(rows, lambda q, turn: True)
    for t in (1, 2):
        assert metrics[f"turn_{t}"] == plain_mean(rows, lambda q, turn, t=t: turn == t)
    for name in CATEGORIES:
        assert metrics[name] == plain_mean(rows, lambda q, turn, name=name: CATEGORY[q] == name)
    for item in items:
        question, turn = map(int, item["item_id"].split("/"))
        assert item["score"] == plain_mean(rows, lambda q, t, answer=(question, turn): (q, t) == answer)
    assert metrics["doubled"] == 30 and metrics["unrated"] == sum(row["score"] == -1 for row in rows)


def test_intervals_are_over_questions(tmp_path: Path) -> None:
    """Where every answer has one judgment, they are Student's over the questions' means.

    The two turns of a question are correlated.
    """
    rng = np.random.default_rng(0)
    easy = {question: rng.integers(2, 8) for question in CATEGORY}
    rows = judgments(lambda question, turn: int(easy[question] + rng.integers(-1, 2)))
    metrics, _ = averaged(judged_file(tmp_path, rows), confidence=0.9)
    table = pd.DataFrame(rows)
    groups = {"score": table, "turn_2": table[table["turn"] == 2]}
    groups["math"] = table[table["question_id"].map(CATEGORY) == "math"]
    for name, group in groups.items():
        means = group.groupby("question_id")["score"].mean()
        low, high = stats.ttest_1samp(means, 5).confidence_interval(0.9)
        assert (metrics[f"{name}_low"], metrics[f"{name}_high"]) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda rows: rows.append(rows[0] | {"question_id": 7}), ": question 7 is none of the 80"),
        (lambda rows: rows.__delitem__(slice(0, 30)), "30 answers have no judgment, such as question 81, turn 1"),
        (lambda rows: [row.update(score=-1) for row in rows], "no judgment holds a rating"),
        (lambda rows: rows[2].update(score=95), r":3: score: .*less than or equal to 10 \(got 95\)"),
    ],
)
def test_bad_judgments_are_one_line(change: Callable[[list[Row]], Any], line: str, tmp_path: Path) -> None:
    change(rows := judgments())
    with pytest.raises(UserError, match=rf"^{tmp_path}.*{line}[^\n]*$"):
        averaged(judged_file(tmp_path, rows))


# The verb ----------------------------------------------------------------------------------------------------------


def scored(place: Path, files: Path | str, *words: str) -> dict[str, dict[str, float]]:
    """Return the numbers that the command writes for files of judgments, joined by commas."""
    out = place / "scores.json"
    assert call("score", "benchmark=mt_bench", *words, f"from={files}", f"out={out}") == 0
    return {title.partition(" — ")[0]: numbers for title, numbers in json.loads(out.read_text()).items()}


def test_a_file_without_rows_is_a_mistake(tmp_path: Path) -> None:
    (empty := tmp_path / "empty.jsonl").touch()
    assert call("score", "benchmark=mt_bench", f"from={empty}") == 2


def test_the_first_questions_of_each_category_may_be_all(tmp_path: Path) -> None:
    rows = [row | {"score": row["question_id"] // 10 % 7} for row in judgments() if row["question_id"] % 10 == 1]
    (numbers,) = scored(tmp_path, judged_file(tmp_path, rows), "benchmark.mt_bench.first=1").values()
    assert numbers["score"] == pytest.approx(sum(row["score"] for row in rows) / 16) and numbers["questions"] == 8


def test_models_and_judges_are_kept_apart_and_files_of_both_are_read_as_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    two = [row | {"model": "n", "score": 8} for row in judgments()]
    other = [row | {"judge": ["x", "single-v1"], "score": 9, "judgment": "[[8]]"} for row in judgments()]
    numbers = scored(tmp_path, path := judged_file(tmp_path, judgments() + two + other))
    expected = {"m, judged by gpt-4": 5, "n, judged by gpt-4": 8, "m, judged by x": 9}
    assert {label: one["score"] for label, one in numbers.items()} == expected
    assert numbers["m, judged by gpt-4"] == averaged(path)[0]
    printed = capfd.readouterr().out
    assert all(label in printed for label in expected)
    why = "judged by x, not gpt-4, scores are not those in the judgments, judge prompts are not FastChat's"  # of math
    assert f"3: m, judged by x — not comparable with published numbers: {why}" in printed
    (again := tmp_path / "again").mkdir()
    paths = f"{judged_file(tmp_path, judgments())},{judged_file(again, judgments(lambda question, turn: 6))}"
    (both,) = scored(tmp_path, paths).values()
    assert (both["score"], both["doubled"]) == (5.5, 160)
    shown = scored(again, out := tmp_path / "scores.json")
    assert shown == {f"{out}: m, judged by gpt-4": both}, "what out= wrote is shown as it is"
