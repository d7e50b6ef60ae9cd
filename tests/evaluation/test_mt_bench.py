"""MT-Bench: questions, both turns, averages and intervals, its judge on loopback, and a whole run."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mt_bench_made_up as mt
import numpy as np
import pandas as pd
import pytest
from answer_server import AnswerServer, Said, answering, text_of
from judge_server import benchmark_judge
from places import SHARED
from scipy import stats
from tiny_run import World, call, tiny

from src.evaluation.mt_bench.questions import QUESTIONS, REFERENCED, REQUESTS, Files, FirstTurns, question_of
from src.evaluation.mt_bench.scores import Judge, rating
from src.kernel.config import UserError
from src.kernel.rows import PROMPTS, RESPONSES, read_rows

REAL = SHARED / "mt_bench"
RECORDED = REAL / "model_judgment" / "gpt-4_single_llama3-8b.jsonl"
FIRSTS = range(81, 161, 10)
"""The first question of each category."""


# The files ---------------------------------------------------------------------------------------------------------


def test_the_package_has_80_questions_of_8_categories(tmp_path: Path) -> None:
    rows = read_rows(mt.questions(tmp_path / "all"), QUESTIONS)
    assert [row["question_id"] for row in rows] == list(range(81, 161)) and len(mt.CATEGORIES) == 8
    assert {row["question_id"] for row in rows if row["reference"]} == set(range(101, 131))
    assert [row["reference"] is not None for row in rows] == [row["category"] in REFERENCED for row in rows]
    some = read_rows(mt.questions(tmp_path / "some", first=2), QUESTIONS)
    assert some == [row for row in rows if row["question_id"] % 10 in (1, 2)]


def changed(place: Path, name: str, change: Callable[[mt.Lines], object]) -> Files:
    """Copies of the published files, of which one was changed."""
    place.mkdir()
    paths = {name: Path(shutil.copy(mt.PUBLISHED.file(name), place / f"{name}.jsonl")) for name in mt.PATHS}
    rows = mt.lines_of(paths[name])
    change(rows)
    mt.written(paths[name], rows)
    return Files(package=None, **{name: str(path) for name, path in paths.items()})


def put(row: int, **values: Any) -> Callable[[mt.Lines], object]:
    return lambda rows: rows[row].update(values)


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("questions", put(4, question_id=81), "questions.jsonl: question_id 81 is there 2 times"),
        ("questions", put(3, turns=["one", ""]), "questions.jsonl:4: turns.1: "),
        ("questions", put(3, category="law"), "^benchmark.mine.temperatures: must be .*<category>: law"),
        ("references", lambda rows: rows.pop(2), "references.jsonl: no answer to question 103"),
        ("judge_prompts", lambda rows: rows.pop(4), "judge_prompts.jsonl: no prompt single-v1"),
    ],
)
def test_a_bad_file_is_one_line(name: str, change: Callable[[mt.Lines], object], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        mt.questions(tmp_path / "out", files=changed(tmp_path / "files", name, change))
    assert not list((tmp_path / "out").iterdir())


# The turns ---------------------------------------------------------------------------------------------------------


def test_the_second_turn_shows_the_policys_own_answer(tmp_path: Path) -> None:
    """Empty and cut-off answers go on as they are; white space around one is dropped, as in FastChat.

    Both turns are sampled with one seed into one folder of cells, by prompt_id: no two are alike.
    """
    texts = {81: "", 91: "cut off in the mid", 101: "\n  padded {question} \t\n"}
    place = mt.conversation(tmp_path, [lambda q: texts.get(q, ""), lambda q: f"second {q}"], first=None)
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
    some = read_rows(mt.made(FirstTurns(categories=["math", "coding"]), tmp_path / "some", place["questions"]), PROMPTS)
    assert [question_of(row) for row in some] == list(range(111, 131))


def test_answers_are_in_fastchats_format_and_the_judges_prompts_are_filled_in_once(tmp_path: Path) -> None:
    """No text is read as a placeholder. The system prompt is that of the prompt's name."""
    texts: list[Callable[[int], str]] = [
        lambda q: "" if q < 101 else " {answer} {ref_answer_1} {\n",
        lambda q: f"}} {q}",
    ]
    place = mt.conversation(tmp_path, texts)
    lines = mt.lines_of(place["answers"] / "model_answer" / "tiny.jsonl")
    assert [list(row) for row in lines] == [["question_id", "answer_id", "model_id", "choices", "tstamp"]] * 8
    answers = {q: [texts[0](q).strip(), texts[1](q)] for q in FIRSTS}
    assert {row["question_id"]: row["choices"] for row in lines} == {
        q: [{"index": 0, "turns": turns}] for q, turns in answers.items()
    }
    assert len({row["answer_id"] for row in lines}) == 8 and {row["model_id"] for row in lines} == {"tiny"}
    numbers = json.loads((place["answers"] / "metrics.json").read_text())
    letters = sum(len("".join(turns)) for turns in answers.values())
    assert numbers == {"answers": 16, "finished": 1, "empty": 2 / 16, "tokens": 1, "characters": letters / 16}
    prompts = {row["name"]: row for row in mt.lines_of(mt.PUBLISHED.file("judge_prompts"))}
    rows = read_rows(place["answers"], REQUESTS)
    assert [(row["question_id"], row["turn"]) for row in rows] == [(q, t) for q in FIRSTS for t in (1, 2)]
    for row in rows:
        math = mt.CATEGORY[row["question_id"]] in ("math", "coding", "reasoning")
        assert row["prompt"] == f"single-{'math-' if math else ''}v1{'-multi-turn' if row['turn'] == 2 else ''}"
        assert row["system_prompt"] == prompts[row["prompt"]]["system_prompt"]
        first, second = answers[row["question_id"]]
        assert first in row["user_prompt"] and (second in row["user_prompt"]) == (row["turn"] == 2)


# Averages ----------------------------------------------------------------------------------------------------------


def plain_mean(rows: mt.Lines, keep: Callable[[int, int], bool]) -> Any:
    """As FastChat's show_result: over all rated judgments."""
    scores = [r["score"] for r in rows if r["score"] != -1 and r["model"] == "m" and keep(r["question_id"], r["turn"])]
    return pytest.approx(sum(scores) / len(scores), abs=1e-12)


def test_random_judgments_are_averaged_as_by_a_loop(tmp_path: Path) -> None:
    lots = random.Random(0)
    rows = mt.judgments(lambda q, turn: lots.choice([-1, 0, 1, 7, 8.5, 10]))
    rows += lots.sample(mt.judgments(lambda q, turn: lots.randint(1, 10)), 30)
    rows += [row | {"model": "other", "score": 10} for row in mt.judgments()]
    lots.shuffle(rows)
    metrics, items = mt.scores_of(mt.judged_file(tmp_path, rows), "m")
    assert metrics["score"] == plain_mean(rows, lambda q, turn: True)
    for t in (1, 2):
        assert metrics[f"turn_{t}"] == plain_mean(rows, lambda q, turn, t=t: turn == t)
    for name in mt.CATEGORIES:
        assert metrics[name] == plain_mean(rows, lambda q, turn, name=name: mt.CATEGORY[q] == name)
    for item in items:
        question, turn = map(int, item["item_id"].split("/"))
        assert item["score"] == plain_mean(rows, lambda q, t, answer=(question, turn): (q, t) == answer)
    assert metrics["doubled"] == 30 and metrics["unrated"] == sum(row["score"] == -1 for row in rows)


def test_intervals_are_over_questions(tmp_path: Path) -> None:
    """Where every answer has one judgment, those of Student's t over the questions' means. Turns hang together."""
    lots = np.random.default_rng(0)
    easy = {q: lots.integers(2, 8) for q in mt.CATEGORY}
    rows = mt.judgments(lambda q, turn: int(easy[q] + lots.integers(-1, 2)))
    metrics, _ = mt.scores_of(mt.judged_file(tmp_path, rows), confidence=0.9)
    table = pd.DataFrame(rows)
    groups = {"score": table, "turn_2": table[table["turn"] == 2]}
    groups["math"] = table[table["question_id"].map(mt.CATEGORY) == "math"]
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
        (put(2, score=95), r":3: score: .*less than or equal to 10 \(got 95\)"),
    ],
)
def test_bad_judgments_are_one_line(change: Callable[[mt.Lines], object], line: str, tmp_path: Path) -> None:
    change(rows := mt.judgments())
    with pytest.raises(UserError, match=rf"^{tmp_path}.*{line}[^\n]*$"):
        mt.scores_of(mt.judged_file(tmp_path, rows))


# Recorded judgments of GPT-4 ---------------------------------------------------------------------------------------

NORMAL, GRIFFIN = "Meta-Llama-3-8B-Instruct-Normal", "Meta-Llama-3-8B-Instruct-Griffin"


def recorded_answers(model: str) -> dict[int, list[str]]:
    """Question -> both answers, cut out of the judge's prompt for the second turn."""
    texts = {row["question_id"]: row["turns"] for row in mt.lines_of(REAL / "question.jsonl")}
    answers = {}
    for row in mt.lines_of(RECORDED):
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
    recorded = mt.lines_of(RECORDED)
    assert [rating(row["judgment"]) for row in recorded] == [row["score"] for row in recorded]
    assert [mt.scores_of(RECORDED, model)[0]["score"] for model in (NORMAL, GRIFFIN)] == [1302 / 166, 2.7]
    for name, stem in {"questions": "question", "references": "reference_answer_gpt-4"}.items():
        assert mt.lines_of(mt.PUBLISHED.file(name)) == mt.lines_of(REAL / f"{stem}.jsonl"), name
    for model in (NORMAL, GRIFFIN):
        answers = recorded_answers(model)
        texts = [lambda q, a=answers: a[q][0], lambda q, a=answers: a[q][1]]
        place = mt.conversation(tmp_path / model, texts, first=None)
        asked = {(row["question_id"], row["turn"]): row for row in read_rows(place["answers"], REQUESTS)}
        assert len(asked) == 160
        for row in (row for row in recorded if row["model"] == model):
            ours = asked[row["question_id"], row["turn"]]
            assert ours["user_prompt"] == row["user_prompt"] and ours["prompt"] == row["judge"][1]


# The judge -------------------------------------------------------------------------------------------------------

REFUSAL = Said(status=400, body='{"error": {"message": "the text is too long"}}')


@pytest.fixture
def server() -> Iterator[AnswerServer]:
    with answering() as server:
        server.say = mt.graded
        yield server


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 requests: both turns of the first question of each category."""
    return mt.conversation(tmp_path_factory.mktemp("mt"), [lambda q: f"one {q}", lambda q: f"two {q}"])["answers"]


def judge(url: str, *words: str, limit: float = 0.05) -> Judge:
    endpoint = benchmark_judge("mt_bench", url, *words)
    return Judge(endpoint=endpoint, key="benchmark.mt_bench.judge", unrated_share_limit=limit)


def judged(judge: Judge, answers: Path, out: Path) -> mt.Lines:
    """The judgments in `out`, whose folder WORK keeps the replies of an earlier call."""
    out.mkdir(exist_ok=True)
    judge(answers, out=out)
    (file,) = (out / "model_judgment").iterdir()
    return mt.lines_of(file)


def numbers(out: Path) -> dict[str, int]:
    return json.loads((out / "metrics.json").read_text())


def test_the_first_rating_in_double_brackets_counts() -> None:
    table = {
        "Rating: [[7]]": 7,
        "Rating: [[8.5]]": 8.5,
        "[[3]] at first, [[9]] later": 3,
        "[x] [2.5] [4]": 2.5,
        "[[10]]": 10,
        "[[95]]": -1,
        "[[7/10]]": -1,
        "[[-3]]": -1,
        "[[٧]]": -1,
        "$ERROR$": -1,
    }
    assert {reply: rating(reply) for reply in table} == table


def test_the_judge_is_asked_as_published(server: AnswerServer, answers: Path, tmp_path: Path) -> None:
    """The order of replies changes no byte."""
    lines, rows = judged(judge(server.url), answers, tmp_path / "out"), read_rows(answers, REQUESTS)
    asked = [[("system", row["system_prompt"]), ("user", row["user_prompt"])] for row in rows]
    messages = [[(turn["role"], turn["content"]) for turn in body.pop("messages")] for body in server.bodies]
    assert sorted(messages) == sorted(asked) and len(rows) == 16
    assert all(body == {"model": "gpt-4", "temperature": 0.0, "max_tokens": 2048} for body in server.bodies)
    for line, row in zip(lines, rows, strict=True):
        reply = mt.graded({"messages": [{}, {"content": row["user_prompt"]}]}, 0)
        expected = {name: row[name] for name in ("question_id", "model", "user_prompt", "turn")}
        score = int(re.findall(r"\d+", reply)[0])
        assert line == expected | {
            "judge": ["gpt-4", row["prompt"]],
            "judgment": reply,
            "score": score,
            "tstamp": 0,
        }
    counts = {"judgments": 16, "unrated": 0, "refused": 0, "input_tokens": 160, "output_tokens": 48}
    assert numbers(tmp_path / "out") == counts
    judged(judge(server.url, "concurrent=1"), answers, tmp_path / "again")
    for file in ("model_judgment/gpt-4_single.jsonl", "metrics.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    (line, *_) = judged(judge(server.url, "model=org/judge"), answers, tmp_path / "other")
    assert line["judge"] == ["org/judge", "single-v1"]


def test_replies_depend_on_the_judge_and_not_on_limits_or_the_address() -> None:
    published = judge("http://a/v1").shared()
    assert judge("http://b/v1", "concurrent=1", "retries=1", limit=1.0).shared() == published
    for word in ("model=gpt-4-0613", "temperature=1.0", "max_tokens=5", "seed=1"):
        assert judge("http://a/v1", word).shared() != published


def test_replies_without_a_rating_are_kept_and_refused_texts_asked_again(
    server: AnswerServer, answers: Path, tmp_path: Path
) -> None:
    """They count as FastChat counts them. Three of 16 are within a limit of 0.2."""
    first, second, third, *_ = [row["user_prompt"] for row in read_rows(answers, REQUESTS)]
    odd = {**dict.fromkeys((first, second), Said("I would rather", "length")), third: REFUSAL}
    server.say = lambda body, number: odd.get(text_of(body)) or mt.graded(body, number)
    patient, out = judge(server.url, limit=0.2), tmp_path / "out"
    lines = judged(patient, answers, out)
    assert [(row["judgment"], row["score"]) for row in lines[:3]] == [("I would rather", -1)] * 2 + [("$ERROR$", -1)]
    assert (numbers(out)["unrated"], numbers(out)["refused"], numbers(out)["judgments"]) == (3, 1, 16)
    with pytest.raises(UserError, match="^benchmark.mt_bench.unrated_share_limit: 2 of 16 .* not a rating"):
        judged(judge(server.url), answers, out)
    assert len(server.bodies) == 16
    server.say = mt.graded
    assert judged(patient, answers, out)[2]["score"] > 0 and len(server.bodies) == 17


@pytest.mark.full
def test_a_policy_is_asked_twice_and_graded(llama: Path, server: AnswerServer, tmp_path: Path) -> None:
    more = [f"judge.base_url={server.url}", "judge.retries=0", "judge.timeout_s=60.0", "first=1", "max_new_tokens=6"]
    words = tiny(llama, tmp_path, "iter=0", "benchmark=mt_bench", *(f"benchmark.mt_bench.{word}" for word in more))
    assert call(*words) == 0
    world, place = World(tmp_path, words), "base/mt_bench"
    lines = mt.lines_of(world.artifact(f"{place}/answers") / "model_answer" / "tiny-base.jsonl")
    turns: dict[int, Any] = {row["question_id"]: row["choices"][0]["turns"] for row in lines}
    assert len(server.bodies) == 16 and list(turns) == list(range(81, 161, 10))
    for temperature in ("0", "0.1", "0.7"):
        for row in read_rows(world.artifact(f"{place}/turn_2_at_{temperature}"), RESPONSES):
            assert turns[question_of(row)] == [row["messages"][1]["content"], row["responses"][0]["text"].strip()]
    file = world.artifact(f"{place}/judgments") / "model_judgment" / "gpt-4_single.jsonl"
    for row in mt.lines_of(file):
        assert all(text in row["user_prompt"] for text in turns[row["question_id"]][: row["turn"]])
    metrics, eight = world.metrics(f"{place}/scores"), {q: mt.CATEGORY[q] for q in turns}
    assert metrics == mt.scores_of(file, "tiny-base", categories=eight)[0]
    assert (metrics["items"], metrics["questions"]) == (16, 8) and {*mt.CATEGORIES} <= {*metrics}
    report = (world.folder / "report.md").read_text()
    assert "MT-Bench" in report and f"{metrics['score']:.2f}" in report
    again = ["benchmark.mt_bench.judge.concurrent=1", "benchmark.mt_bench.unrated_share_limit=0.5"]
    assert call(*words, *again) == 0 and len(server.bodies) == 16
    # A second question of each category: the judge is asked on those alone.
    assert call(*words, "benchmark.mt_bench.first=2") == 0 and len(server.bodies) == 32
    assert world.metrics(f"{place}/scores")["items"] == 32
