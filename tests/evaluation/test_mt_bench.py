"""MT-Bench without its judge: questions, both turns, the judge's prompts, averages and intervals, the plan."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mt_bench_made_up as made_up
import numpy as np
import pandas as pd
import pytest
from mt_bench_made_up import (
    CATEGORIES,
    CATEGORY,
    KEY,
    PUBLISHED,
    Lines,
    conversation,
    judged_file,
    judgments,
    lines_of,
    made,
    questions,
    scores_of,
)
from places import SHARED
from scipy import stats
from tiny_run import typed

from src.evaluation.mt_bench.questions import (
    QUESTIONS,
    REFERENCED,
    REQUESTS,
    Answers,
    Files,
    FirstTurns,
    SecondTurns,
    question_of,
)
from src.evaluation.mt_bench.scores import SCORES, Score, rating
from src.experiment.graph import nodes_of
from src.kernel.config import UserError, fingerprint
from src.kernel.rows import PROMPTS, RESPONSES, read_rows, write_rows

REAL = SHARED / "mt_bench"
RECORDED = REAL / "model_judgment" / "gpt-4_single_llama3-8b.jsonl"
FIRSTS = range(81, 161, 10)
"""The first question of each category."""


# The files ---------------------------------------------------------------------------------------------------------


def test_the_package_has_80_questions_of_8_categories(tmp_path: Path) -> None:
    rows = read_rows(questions(tmp_path / "all"), QUESTIONS)
    assert [row["question_id"] for row in rows] == list(range(81, 161)) and len(CATEGORIES) == 8
    assert {row["question_id"] for row in rows if row["reference"]} == set(range(101, 131))
    assert [row["reference"] is not None for row in rows] == [row["category"] in REFERENCED for row in rows]
    some = read_rows(questions(tmp_path / "some", first=2), QUESTIONS)
    assert some == [row for row in rows if row["question_id"] % 10 in (1, 2)]


def changed(place: Path, name: str, change: Callable[[Lines], object]) -> Files:
    """Copies of the published files, of which one was changed."""
    place.mkdir()
    paths = {name: Path(shutil.copy(PUBLISHED.file(name), place / f"{name}.jsonl")) for name in made_up.PATHS}
    rows = lines_of(paths[name])
    change(rows)
    made_up.written(paths[name], rows)
    return Files(package=None, **{name: str(path) for name, path in paths.items()})


def test_what_the_files_say_is_in_the_key_and_where_they_lie_is_not(tmp_path: Path) -> None:
    assert fingerprint(changed(tmp_path / "same", "questions", list)) == fingerprint(PUBLISHED)
    assert fingerprint(changed(tmp_path / "other", "references", Lines.reverse)) != fingerprint(PUBLISHED)


def put(row: int, **values: Any) -> Callable[[Lines], object]:
    return lambda rows: rows[row].update(values)


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("questions", put(4, question_id=81), "questions.jsonl: question_id 81 is there 2 times"),
        ("questions", put(3, turns=["one", ""]), "questions.jsonl:4: turns.1: "),
        ("questions", put(3, category="law"), "^benchmark.mine.temperatures: must be .*<category>: law"),
        ("references", lambda rows: rows.pop(2), "references.jsonl: no answer to question 103"),
        ("references", put(1, choices=[["x"]]), "references.jsonl:2: choices.0: "),
        ("judge_prompts", lambda rows: rows.pop(4), "judge_prompts.jsonl: no prompt single-v1"),
    ],
)
def test_a_bad_file_is_one_line(name: str, change: Callable[[Lines], object], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        questions(tmp_path / "out", files=changed(tmp_path / "files", name, change))
    assert not list((tmp_path / "out").iterdir())


# The turns ---------------------------------------------------------------------------------------------------------


def test_the_second_turn_shows_the_policys_own_answer(tmp_path: Path) -> None:
    """Empty and cut-off answers go on as they are; white space around one is dropped, as in FastChat.

    Both turns are sampled with one seed into one folder of cells, by prompt_id: no two are alike.
    """
    texts = {81: "", 91: "cut off in the mid", 101: "\n  padded {question} \t\n"}
    place = conversation(tmp_path, [lambda q: texts.get(q, ""), lambda q: f"second {q}"], first=None)
    one, two = (read_rows(place[name], PROMPTS) for name in ("one", "two"))
    assert len({row["prompt_id"] for row in [*one, *two]}) == 160
    turns = {row["question_id"]: row["turns"] for row in read_rows(place["questions"], QUESTIONS)}
    assert [question_of(row) for row in two] == [question_of(row) for row in one] == list(turns)
    for first, second in zip(one, two, strict=True):
        question = question_of(first)
        contents = [turns[question][0], texts.get(question, "").strip(), turns[question][1]]
        roles = ("user", "assistant", "user")
        messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
        assert (first["messages"], second["messages"]) == (messages[:1], messages)
    some = read_rows(made(FirstTurns(categories=["math", "coding"]), tmp_path / "some", place["questions"]), PROMPTS)
    assert [question_of(row) for row in some] == list(range(111, 131))


def test_a_prompt_that_was_too_long_is_named(tmp_path: Path) -> None:
    asked = questions(tmp_path / "questions", first=1)
    prompts = made(FirstTurns(categories=CATEGORIES), tmp_path / "one", asked)
    whole = made_up.responses(tmp_path / "whole", prompts, str)
    (short := tmp_path / "short").mkdir()
    write_rows(short, [row for row in read_rows(whole, RESPONSES) if question_of(row) not in (91, 131)], RESPONSES)
    for stage, inputs in (
        (SecondTurns(categories=CATEGORIES, key=KEY), (short, asked)),
        (Answers(model="tiny", key=KEY), (asked, whole, short)),
    ):
        with pytest.raises(UserError, match="^benchmark.mine.max_prompt_tokens: 2 of 8 prompts .* 'mt_bench/91'"):
            made(stage, tmp_path / stage.kind, *inputs)


def test_answers_are_in_fastchats_format_and_the_judges_prompts_are_filled_in_once(tmp_path: Path) -> None:
    """No text is read as a placeholder. The system prompt is that of the prompt's name."""
    texts: list[Callable[[int], str]] = [
        lambda q: "" if q < 101 else " {answer} {ref_answer_1} {\n",
        lambda q: f"}} {q}",
    ]
    place = conversation(tmp_path, texts)
    lines = lines_of(place["answers"] / "model_answer" / "tiny.jsonl")
    assert [list(row) for row in lines] == [["question_id", "answer_id", "model_id", "choices", "tstamp"]] * 8
    answers = {q: [texts[0](q).strip(), texts[1](q)] for q in FIRSTS}
    assert {row["question_id"]: row["choices"] for row in lines} == {
        q: [{"index": 0, "turns": turns}] for q, turns in answers.items()
    }
    assert len({row["answer_id"] for row in lines}) == 8 and {row["model_id"] for row in lines} == {"tiny"}
    numbers = json.loads((place["answers"] / "metrics.json").read_text())
    letters = sum(len("".join(turns)) for turns in answers.values())
    assert numbers == {"answers": 16, "finished": 1, "empty": 2 / 16, "tokens": 1, "characters": letters / 16}
    prompts = {row["name"]: row for row in lines_of(PUBLISHED.file("judge_prompts"))}
    rows = read_rows(place["answers"], REQUESTS)
    assert [(row["question_id"], row["turn"]) for row in rows] == [(q, t) for q in FIRSTS for t in (1, 2)]
    for row in rows:
        math = CATEGORY[row["question_id"]] in ("math", "coding", "reasoning")
        assert row["prompt"] == f"single-{'math-' if math else ''}v1{'-multi-turn' if row['turn'] == 2 else ''}"
        assert row["system_prompt"] == prompts[row["prompt"]]["system_prompt"]
        first, second = answers[row["question_id"]]
        assert first in row["user_prompt"] and (second in row["user_prompt"]) == (row["turn"] == 2)


# Averages ----------------------------------------------------------------------------------------------------------


def plain_mean(rows: Lines, keep: Callable[[int, int], bool]) -> Any:
    """As FastChat's show_result: over all rated judgments."""
    scores = [r["score"] for r in rows if r["score"] != -1 and r["model"] == "m" and keep(r["question_id"], r["turn"])]
    return pytest.approx(sum(scores) / len(scores), abs=1e-12)


def test_random_judgments_are_averaged_as_by_a_loop(tmp_path: Path) -> None:
    lots = random.Random(0)
    rows = judgments(lambda q, turn: lots.choice([-1, 0, 1, 7, 8.5, 10]))
    rows += lots.sample(judgments(lambda q, turn: lots.randint(1, 10)), 30)
    rows += [row | {"model": "other", "score": 10} for row in judgments()]
    lots.shuffle(rows)
    metrics, items = scores_of(judged_file(tmp_path, rows), "m")
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
    """Where every answer has one judgment, those of Student's t over the questions' means. Turns hang together."""
    lots = np.random.default_rng(0)
    easy = {q: lots.integers(2, 8) for q in CATEGORY}
    rows = judgments(lambda q, turn: int(easy[q] + lots.integers(-1, 2)))
    metrics, _ = scores_of(judged_file(tmp_path, rows), confidence=0.9)
    table = pd.DataFrame(rows)
    groups = {"score": table, "turn_2": table[table["turn"] == 2]}
    groups["math"] = table[table["question_id"].map(CATEGORY) == "math"]
    for name, group in groups.items():
        means = group.groupby("question_id")["score"].mean()
        low, high = stats.ttest_1samp(means, 5).confidence_interval(0.9)
        assert (metrics[f"{name}_low"], metrics[f"{name}_high"]) == pytest.approx((low, high), abs=1e-9)


def test_intervals_stay_on_the_scale_and_what_has_no_rating_has_no_mean(tmp_path: Path) -> None:
    four = {q: CATEGORY[q] for q in (81, 82, 90, 91)}
    rows = [row for row in judgments(lambda q, turn: 10 if q % 10 else 1) if row["question_id"] in four]
    metrics, _ = scores_of(judged_file(tmp_path, rows), categories=four)
    assert metrics["score_high"] == metrics["writing_high"] == 10 and metrics["writing_low"] == 0
    assert metrics["roleplay"] == 10 and "roleplay_low" not in metrics and metrics["questions"] == 4
    rows = judgments(lambda q, turn: -1 if CATEGORY[q] == "math" or q == 81 else 5)
    metrics, items = scores_of(judged_file(tmp_path, rows))
    assert metrics["items"] == len(items) == 160 - 22 and metrics["unrated"] == 22
    assert metrics["writing"] == 5 and not [key for key in metrics if key.startswith("math")]


def test_the_stage_writes_rows_and_metrics(tmp_path: Path) -> None:
    asked, folder = questions(tmp_path / "questions"), tmp_path / "judgments"
    (folder / "model_judgment").mkdir(parents=True)
    path = judged_file(folder / "model_judgment", judgments(lambda q, turn: (q + turn) % 10 + 1))
    out, (metrics, items) = made(Score(confidence=0.95), tmp_path / "out", folder, asked), scores_of(path)
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert read_rows(out, SCORES) == items
    assert items[1] == {"item_id": "81/2", "score": 4, "cluster": "81", "category": "writing", "turn": 2}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda rows: rows.append(rows[0] | {"question_id": 7}), ": question 7 is none of the 80"),
        (lambda rows: rows.__delitem__(slice(0, 30)), "30 answers have no judgment, such as question 81, turn 1"),
        (lambda rows: [row.update(score=-1) for row in rows], "no judgment holds a rating"),
        (put(2, score=95), r":3: score: .*less than or equal to 10 \(got 95\)"),
        (put(2, judge="gpt-4"), ":3: judge: "),
    ],
)
def test_bad_judgments_are_one_line(change: Callable[[Lines], object], line: str, tmp_path: Path) -> None:
    change(rows := judgments())
    with pytest.raises(UserError, match=rf"^{tmp_path}.*{line}[^\n]*$"):
        scores_of(judged_file(tmp_path, rows))


def test_the_plan_counts_turns_and_requests() -> None:
    nodes = {node.name: node for node in nodes_of(typed("iter=1", "benchmark=mt_bench"))}
    turns = {name: node.work for name, node in nodes.items() if name.startswith("it1/mt_bench/turn_2")}
    assert sorted(turns.values()) == [20, 20, 40] and nodes["base/mt_bench/judgments"].work == 160
    judging = {name for name, node in nodes.items() if node.job == "judging"}
    assert judging == {f"{policy}/mt_bench/{stage}" for policy in ("base", "it1") for stage in ("judgments", "scores")}


# Recorded judgments of GPT-4 ---------------------------------------------------------------------------------------

NORMAL, GRIFFIN = "Meta-Llama-3-8B-Instruct-Normal", "Meta-Llama-3-8B-Instruct-Griffin"


def recorded_answers(model: str) -> dict[int, list[str]]:
    """Question -> both answers, cut out of the judge's prompt for the second turn."""
    texts = {row["question_id"]: row["turns"] for row in lines_of(REAL / "question.jsonl")}
    answers = {}
    for row in lines_of(RECORDED):
        if (row["model"], row["turn"]) == (model, 2):
            marks = [f"### User:\n{turn}\n\n### Assistant A:\n" for turn in texts[row["question_id"]]]
            both = row["user_prompt"].partition("<|The Start of Assistant A's Conversation with User|>\n\n")[2]
            first, _, second = both.removeprefix(marks[0]).partition(f"\n\n{marks[1]}")
            end = "\n\n<|The End of Assistant A's Conversation with User|>"
            answers[row["question_id"]] = [first, second.removesuffix(end)]
    return answers


@pytest.mark.skipif(not RECORDED.exists(), reason="no ../shared/data/mt_bench beside the checkout")
@pytest.mark.full
def test_the_judge_is_asked_what_gpt_4_was_asked(tmp_path: Path) -> None:
    """From FastChat's own files. Character for character, on both turns, with and without references: 330 prompts.

    And its ratings are read as FastChat read them, and averaged as published.
    """
    recorded = lines_of(RECORDED)
    assert [rating(row["judgment"]) for row in recorded] == [row["score"] for row in recorded]
    assert [scores_of(RECORDED, model)[0]["score"] for model in (NORMAL, GRIFFIN)] == [1302 / 166, 2.7]
    for name, stem in {"questions": "question", "references": "reference_answer_gpt-4"}.items():
        assert lines_of(PUBLISHED.file(name)) == lines_of(REAL / f"{stem}.jsonl"), name
    for model in (NORMAL, GRIFFIN):
        answers = recorded_answers(model)
        texts = [lambda q, a=answers: a[q][0], lambda q, a=answers: a[q][1]]
        place = conversation(tmp_path / model, texts, first=None)
        asked = {(row["question_id"], row["turn"]): row for row in read_rows(place["answers"], REQUESTS)}
        assert len(asked) == 160
        for row in (row for row in recorded if row["model"] == model):
            ours = asked[row["question_id"], row["turn"]]
            assert ours["user_prompt"] == row["user_prompt"] and ours["prompt"] == row["judge"][1]
