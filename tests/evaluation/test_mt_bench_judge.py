"""MT-Bench's judge on loopback: what is asked, how ratings are read, and a whole run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answer_server import AnswerServer, Said, answering, text_of
from judge_server import benchmark_judge
from mt_bench_made_up import CATEGORIES, CATEGORY, Lines, conversation, graded, lines_of, scores_of
from tiny_run import World, call, tiny

from src.evaluation.mt_bench.questions import REQUESTS, question_of
from src.evaluation.mt_bench.scores import Judge, rating
from src.kernel.config import UserError
from src.kernel.rows import RESPONSES, read_rows

REFUSAL = Said(status=400, body='{"error": {"message": "the text is too long"}}')


@pytest.fixture
def server() -> Iterator[AnswerServer]:
    with answering() as server:
        server.say = graded
        yield server


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 requests: both turns of the first question of each category."""
    return conversation(tmp_path_factory.mktemp("mt"), [lambda q: f"one {q}", lambda q: f"two {q}"])["answers"]


def judge(url: str, *words: str, limit: float = 0.05) -> Judge:
    endpoint = benchmark_judge("mt_bench", url, *words)
    return Judge(endpoint=endpoint, key="benchmark.mt_bench.judge", unrated_share_limit=limit)


def judged(judge: Judge, answers: Path, out: Path) -> Lines:
    """The judgments in `out`, whose folder WORK keeps the replies of an earlier call."""
    out.mkdir(exist_ok=True)
    judge(answers, out=out)
    (file,) = (out / "model_judgment").iterdir()
    return lines_of(file)


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
        reply = graded({"messages": [{}, {"content": row["user_prompt"]}]}, 0)
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
    server.say = lambda body, number: odd.get(text_of(body)) or graded(body, number)
    patient, out = judge(server.url, limit=0.2), tmp_path / "out"
    lines = judged(patient, answers, out)
    assert [(row["judgment"], row["score"]) for row in lines[:3]] == [("I would rather", -1)] * 2 + [("$ERROR$", -1)]
    assert (numbers(out)["unrated"], numbers(out)["refused"], numbers(out)["judgments"]) == (3, 1, 16)
    with pytest.raises(UserError, match="^benchmark.mt_bench.unrated_share_limit: 2 of 16 .* not a rating"):
        judged(judge(server.url), answers, out)
    assert len(server.bodies) == 16
    server.say = graded
    assert judged(patient, answers, out)[2]["score"] > 0 and len(server.bodies) == 17


@pytest.mark.full
def test_a_policy_is_asked_twice_and_graded(llama: Path, server: AnswerServer, tmp_path: Path) -> None:
    own = [f"judge.base_url={server.url}", "judge.retries=0", "judge.timeout_s=60.0", "first=1", "max_new_tokens=6"]
    words = tiny(llama, tmp_path, "iter=0", "benchmark=mt_bench", *(f"benchmark.mt_bench.{word}" for word in own))
    assert call(*words) == 0
    world, place = World(tmp_path, words), "base/mt_bench"
    lines = lines_of(world.artifact(f"{place}/answers") / "model_answer" / "tiny-base.jsonl")
    turns: dict[int, Any] = {row["question_id"]: row["choices"][0]["turns"] for row in lines}
    assert len(server.bodies) == 16 and list(turns) == list(range(81, 161, 10))
    for temperature in ("0", "0.1", "0.7"):
        for row in read_rows(world.artifact(f"{place}/turn_2_at_{temperature}"), RESPONSES):
            assert turns[question_of(row)] == [row["messages"][1]["content"], row["responses"][0]["text"].strip()]
    file = world.artifact(f"{place}/judgments") / "model_judgment" / "gpt-4_single.jsonl"
    for row in lines_of(file):
        assert all(text in row["user_prompt"] for text in turns[row["question_id"]][: row["turn"]])
    metrics, eight = world.metrics(f"{place}/scores"), {q: CATEGORY[q] for q in turns}
    assert metrics == scores_of(file, "tiny-base", categories=eight)[0]
    assert (metrics["items"], metrics["questions"]) == (16, 8) and {*CATEGORIES} <= {*metrics}
    report = (world.folder / "report.md").read_text()
    assert "MT-Bench" in report and f"{metrics['score']:.2f}" in report
    again = ["benchmark.mt_bench.judge.concurrent=1", "benchmark.mt_bench.unrated_share_limit=0.5"]
    assert call(*words, *again) == 0 and len(server.bodies) == 16
    # A second question of each category: the judge is asked on those alone.
    assert call(*words, "benchmark.mt_bench.first=2") == 0 and len(server.bodies) == 32
    assert world.metrics(f"{place}/scores")["items"] == 32
