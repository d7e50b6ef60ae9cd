"""MT-Bench's averages: against pandas on the real file, on random files, and what is wrong with a file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mt_bench_made_up import RECORDED, lines_of, made, needs_real, questions
from scipy import stats

from src.config import UserError
from src.evaluation.mt_bench.question_files import published_categories
from src.evaluation.mt_bench.score import SCORES, Score, score_file
from src.records import read_rows

NORMAL, GRIFFIN = "Meta-Llama-3-8B-Instruct-Normal", "Meta-Llama-3-8B-Instruct-Griffin"
CATEGORIES = published_categories()
Row = dict[str, Any]


def judgments(score: Callable[[int, int], Any] = lambda q, turn: 5) -> list[Row]:
    return [
        {"question_id": q, "model": "m", "judge": ["gpt-4", "single-v1"], "score": score(q, turn), "turn": turn}
        for q, turn in product(CATEGORIES, (1, 2))
    ]


def written(place: Path, rows: list[Row]) -> Path:
    file = place / "gpt-4_single.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def shown(path: Path, model: str) -> dict[str, float]:
    """The numbers of FastChat's show_result, and those of categories, by pandas."""
    table = pd.read_json(path, lines=True)
    table = table[(table["model"] == model) & (table["score"] != -1)]
    table["category"] = table["question_id"].map(CATEGORIES)
    found = {"score": table["score"].mean()}
    found |= {f"turn_{turn}": mean for turn, mean in table.groupby("turn")["score"].mean().items()}
    found |= {str(name): mean for name, mean in table.groupby("category")["score"].mean().items()}
    cells = table.groupby(["category", "turn"])["score"].mean()
    return found | {f"{name}_turn_{turn}": mean for (name, turn), mean in cells.items()}


# Averages ----------------------------------------------------------------------------------------------------------


@needs_real
@pytest.mark.parametrize(
    ("model", "score", "turn_1", "turn_2", "unrated", "doubled"),
    [(NORMAL, 1302 / 166, 721 / 86, 581 / 80, 4, 10), (GRIFFIN, 2.7, 3.1375, 2.2625, 0, 0)],
)
def test_recorded_judgments_are_averaged_as_published(
    model: str, score: float, turn_1: float, turn_2: float, unrated: int, doubled: int
) -> None:
    """The doubled rows of Normal are a first try at questions 81 to 90, of which four failed: all rated ones count."""
    found = score_file(RECORDED, model)
    metrics = found.metrics
    assert {name: metrics[name] for name in shown(RECORDED, model)} == shown(RECORDED, model)
    assert (metrics["score"], metrics["turn_1"], metrics["turn_2"]) == (score, turn_1, turn_2)
    assert (metrics["unrated"], metrics["doubled"], metrics["items"], metrics["questions"]) == (
        *(unrated, doubled),
        *(160, 80),
    )
    assert [row["item_id"] for row in found.rows] == [f"{q}/{turn}" for q in range(81, 161) for turn in (1, 2)]


@needs_real
def test_doubled_judgments_count_and_move_the_mean_or_are_refused() -> None:
    """What the documentation says of the recorded ones: 7.76875 if the last ones won."""
    last = {(row["question_id"], row["turn"]): row["score"] for row in lines_of(RECORDED) if row["model"] == NORMAL}
    found = score_file(RECORDED, NORMAL)
    assert np.mean(list(last.values())) == 7.76875 != found.metrics["score"]
    assert (found.metrics["unrated"], found.metrics["doubled"]) == (4, 10)
    with pytest.raises(UserError, match=r"jsonl:11: question 81, turn 1 was judged at .*jsonl:1 already"):
        score_file(RECORDED, NORMAL, doubled="refuse")


@pytest.mark.parametrize("seed", range(3))
def test_random_judgments_are_averaged_as_pandas_does(seed: int, tmp_path: Path) -> None:
    lots = random.Random(seed)
    rows = judgments(lambda q, turn: lots.choice([-1, 0, 1, 7, 8.5, 10]))
    rows += lots.sample(judgments(lambda q, turn: lots.randint(1, 10)), 30)
    rows += [row | {"model": "other", "score": 10} for row in judgments()]
    lots.shuffle(rows)
    path = written(tmp_path, rows)
    metrics = score_file(path, "m").metrics
    means = shown(path, "m")
    assert {name: metrics[name] for name in means} == pytest.approx(means, abs=1e-12)
    assert metrics["doubled"] == 30 and metrics["unrated"] == sum(row["score"] == -1 for row in rows)


def test_intervals_are_over_questions(tmp_path: Path) -> None:
    """Where every answer has one judgment, those of Student's t over the questions' means. Turns hang together."""
    lots = np.random.default_rng(0)
    easy = {q: lots.integers(2, 8) for q in CATEGORIES}
    rows = judgments(lambda q, turn: int(easy[q] + lots.integers(-1, 2)))
    metrics = score_file(written(tmp_path, rows), confidence=0.9).metrics
    table = pd.DataFrame(rows)
    groups = {"score": table, "turn_2": table[table["turn"] == 2]}
    groups["math"] = table[table["question_id"].map(CATEGORIES) == "math"]
    for name, group in groups.items():
        means = group.groupby("question_id")["score"].mean()
        low, high = stats.ttest_1samp(means, 5).confidence_interval(0.9)
        assert (metrics[f"{name}_low"], metrics[f"{name}_high"]) == pytest.approx((low, high), abs=1e-9)
    apart = stats.ttest_1samp(table["score"], 5).confidence_interval(0.9)
    assert metrics["score_high"] - metrics["score_low"] > 1.2 * (apart.high - apart.low)


def test_intervals_stay_on_the_scale_and_one_question_has_none(tmp_path: Path) -> None:
    rows = [row for row in judgments(lambda q, turn: 10 if q % 10 else 1) if row["question_id"] in (81, 82, 90, 91)]
    four = {q: CATEGORIES[q] for q in (81, 82, 90, 91)}
    metrics = score_file(written(tmp_path, rows), categories=four).metrics
    assert metrics["score_high"] == metrics["writing_high"] == 10 and metrics["writing_low"] == 0
    assert metrics["roleplay"] == 10 and "roleplay_low" not in metrics and metrics["questions"] == 4


def test_what_has_no_rating_has_no_row_and_no_mean(tmp_path: Path) -> None:
    rows = judgments(lambda q, turn: -1 if CATEGORIES[q] == "math" or q == 81 else 5)
    found = score_file(written(tmp_path, rows))
    assert found.metrics["items"] == len(found.rows) == 160 - 22 and found.metrics["unrated"] == 22
    assert found.metrics["writing"] == 5 and not [key for key in found.metrics if key.startswith("math")]


def test_the_stage_writes_rows_and_metrics(tmp_path: Path) -> None:
    asked, folder = questions(tmp_path / "questions"), tmp_path / "judgments"
    (folder / "model_judgment").mkdir(parents=True)
    rows = judgments(lambda q, turn: (q + turn) % 10 + 1)
    written(folder / "model_judgment", rows)
    out = made(Score(confidence=0.95), tmp_path / "out", folder, asked)
    found = score_file(folder / "model_judgment" / "gpt-4_single.jsonl")
    assert json.loads((out / "metrics.json").read_text()) == found.metrics
    assert read_rows(out, SCORES) == found.rows
    assert found.rows[1] == {"item_id": "81/2", "score": 4, "cluster": "81", "category": "writing", "turn": 2}
    written(folder / "model_judgment", [*rows, rows[3]])
    with pytest.raises(UserError, match=r"jsonl:161: question 82, turn 2 was judged at .*jsonl:4 already"):
        made(Score(confidence=0.95), tmp_path / "doubled", folder, asked)
    assert not list((tmp_path / "doubled").iterdir())


# What is wrong with a file -----------------------------------------------------------------------------------------


def put(**values: Any) -> Callable[[list[Row]], object]:
    return lambda rows: rows[2].update(values)


BAD = [
    (lambda rows: rows.append(rows[0] | {"question_id": 7}), ":161: question 7 is none of the 80; delete the row"),
    (lambda rows: rows.pop(5), "no judgment of question 83 .turn 2.; judge them too"),
    (lambda rows: rows.__delitem__(slice(0, 30)), r"81 \(turn 1\), 81 \(turn 2\), .*, 85 \(turn 2\) and 20 more"),
    (lambda rows: rows.clear(), "jsonl: no rows in it"),
    (lambda rows: rows[4].pop("score"), ":5: no score; judgments of single answers have question_id, model, judge"),
    (lambda rows: [row.update(score=-1) for row in rows], r"no judgment holds a rating \(all scores are -1\)"),
    (lambda rows: rows.append(rows[0] | {"model": "n"}), "judgments of 2 models, m, n; choose one"),
    (lambda rows: rows.append(rows[0] | {"judge": ["x", "y"]}), "judgments of 2 judges, gpt-4, x; choose one"),
    (put(score="7"), ':3: score: "7" is not a number from 0 to 10, or -1 for none'),
    (put(score=None), ":3: score: null is not a number"),
    (put(score=True), ":3: score: true is not a number"),
    (put(score=float("nan")), ":3: score: NaN is not a number"),
    (put(score=95), ":3: score: 95 is not a number from 0 to 10"),
    (put(score=-0.5), ":3: score: -0.5 is not a number from 0 to 10"),
    (put(turn=3), ":3: turn: 3 is not 1 or 2"),
    (put(question_id="82"), ':3: question_id: "82" is not a whole number'),
    (put(judge="gpt-4"), r':3: judge: "gpt-4" is not \[judge, name of its prompt\]'),
    (put(model=None), ":3: model: null is not a name"),
]


@pytest.mark.parametrize(("change", "line"), BAD, ids=[line[:50] for _, line in BAD])
def test_a_bad_file_is_one_line(change: Callable[[list[Row]], object], line: str, tmp_path: Path) -> None:
    rows = judgments()
    change(rows)
    with pytest.raises(UserError, match=f"^{tmp_path}.*{line}") as raised:
        score_file(written(tmp_path, rows))
    assert "\n" not in str(raised.value)


def test_models_and_judges_are_named_where_there_are_several(tmp_path: Path) -> None:
    rows = judgments() + [row | {"model": "n", "judge": ["x", "y"], "score": 9} for row in judgments()]
    path = written(tmp_path, rows)
    assert score_file(path, "n").metrics["score"] == score_file(path, "n", "x").metrics["score"] == 9
    with pytest.raises(UserError, match="no judgment of the model o; there are m, n"):
        score_file(path, "o")
    with pytest.raises(UserError, match="no judgment of the judge gpt-4; there are x"):
        score_file(path, "n", "gpt-4")
    with pytest.raises(UserError, match="no file .*lost.jsonl"):
        score_file(tmp_path / "lost.jsonl")
