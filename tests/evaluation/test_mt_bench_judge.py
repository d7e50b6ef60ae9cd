"""MT-Bench's judge on loopback: what is asked, how ratings are read, and that nothing is paid twice."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answer_server import IMPATIENT, AnswerServer, Said, answering
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from judge_server import KEY, Step
from mt_bench_made_up import RECORDED, conversation, lines_of, needs_real
from tiny_run import ROOT

from src.config import UserError
from src.evaluation.mt_bench.benchmark import MTBench
from src.evaluation.mt_bench.judge import Judge, rating
from src.evaluation.mt_bench.rows import REQUESTS
from src.records import read_rows

TOTAL = 16
"""Requests on the first question of each category."""
REFUSAL = Step(status=400, body='{"error": {"message": "the text is too long"}}')


@pytest.fixture
def server() -> Iterator[AnswerServer]:
    with answering() as server:
        yield server


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conversation(tmp_path_factory.mktemp("mt"), [lambda q: f"one {q}", lambda q: f"two {q}"])["answers"]


def benchmark(*overrides: str) -> MTBench:
    with initialize_config_dir(str(ROOT / "conf" / "benchmark"), version_base="1.3"):
        return instantiate(compose("mt_bench", list(overrides)), _convert_="all")["benchmark"]["mt_bench"]


def judge(url: str, *overrides: str) -> Judge:
    """That of conf/benchmark/mt_bench.yaml, which waits for nothing."""
    words = [option.replace("endpoint.", "judge.") for option in (f"endpoint.base_url={url}", *IMPATIENT)]
    its = benchmark(*(f"benchmark.mt_bench.{word}" for word in (*words, *overrides)))
    return Judge(endpoint=its.judge, key="benchmark.mt_bench.judge", unrated_share_limit=its.unrated_share_limit)


def asked(judge: Judge, answers: Path, out: Path) -> list[dict[str, Any]]:
    """The judgments in `out`, whose folder WORK keeps the replies of an earlier call."""
    out.mkdir(exist_ok=True)
    judge(answers, out=out)
    return lines_of(out / "model_judgment" / "gpt-4_single.jsonl")


def numbers(out: Path) -> dict[str, int]:
    return json.loads((out / "metrics.json").read_text())


def graded(body: dict[str, Any], number: int) -> str:
    """A rating that depends on the text alone."""
    return f"It is long. Rating: [[{len(body['messages'][1]['content']) % 10 + 1}]]"


# Ratings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("Rating: [[7]]", 7),
        ("Rating: [[8.5]]", 8.5),
        ("[[3]] at first, [[9]] later", 3),
        ("see [1], so [[6]]", 6),
        ("Rating: [5]", 5),
        ("[x] [2.5] [4]", 2.5),
        ("[[10]]", 10),
        ("[[0]]", 0),
        ("[[95]]", -1),
        ("[[rating]]", -1),
        ("[[7/10]]", -1),
        ("[[-3]]", -1),
        ("Rating: 7", -1),
        ("[[7", -1),
        ("[[٧]]", -1),
        ("", -1),
        ("$ERROR$", -1),
    ],
)
def test_the_first_rating_in_double_brackets_counts(said: str, score: float) -> None:
    assert rating(said) == score and isinstance(rating(said), type(score))


@needs_real
def test_ratings_of_gpt_4_are_read_as_fastchat_read_them() -> None:
    rows = lines_of(RECORDED)
    assert [rating(row["judgment"]) for row in rows] == [row["score"] for row in rows] and len(rows) == 330


# Requests ----------------------------------------------------------------------------------------------------------


def test_the_judge_is_asked_as_published(server: AnswerServer, answers: Path, tmp_path: Path) -> None:
    server.say = graded
    judged = asked(judge(server.url), answers, tmp_path / "out")
    rows = read_rows(answers, REQUESTS)
    expected = [
        [{"role": "system", "content": row["system_prompt"]}, {"role": "user", "content": row["user_prompt"]}]
        for row in rows
    ]
    order = [message[1]["content"] for message in expected]
    bodies = sorted(server.bodies, key=lambda body: order.index(body["messages"][1]["content"]))
    assert [body.pop("messages") for body in bodies] == expected and len(rows) == TOTAL
    assert all(body == {"model": "gpt-4", "temperature": 0.0, "max_tokens": 2048} for body in bodies)
    keys = ["question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp"]
    for line, row in zip(judged, rows, strict=True):
        said = graded({"messages": [{}, {"content": row["user_prompt"]}]}, 0)
        score = int(re.findall(r"\d+", said)[0])
        values = [row["question_id"], "tiny", ["gpt-4", row["prompt"]], row["user_prompt"], said, score, row["turn"], 0]
        assert list(line) == keys and list(line.values()) == values
    counts = {"judgments": TOTAL, "unrated": 0, "refused": 0}
    assert numbers(tmp_path / "out") == counts | {"input_tokens": 10 * TOTAL, "output_tokens": 3 * TOTAL}


def test_the_order_of_replies_changes_no_byte(server: AnswerServer, answers: Path, tmp_path: Path) -> None:
    server.say = graded
    for name, threads in (("a", 1), ("b", 16)):
        asked(judge(server.url, f"judge.concurrent={threads}"), answers, tmp_path / name)
    for file in ("model_judgment/gpt-4_single.jsonl", "metrics.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_bill_and_price_are_told_before_and_after(
    server: AnswerServer, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.say = graded
    asked(judge(server.url, "judge.input_price=30.0", "judge.output_price=60.0"), answers, tmp_path / "out")
    out = capsys.readouterr().out
    before, after = out.splitlines()
    letters = sum(len(row["system_prompt"] + row["user_prompt"]) for row in read_rows(answers, REQUESTS))
    cost = (letters // 4 * 30 + TOTAL * 2048 * 60) / 1e6
    assert f"16 requests to make, 0 replies known, about {letters // 4:,} input tokens, cost at most about" in before
    assert before.endswith(f"{cost:.4g}")
    assert f"16 answers, 0 retries, 160 input and 48 output tokens, cost {(160 * 30 + 48 * 60) / 1e6:.4g}" in after


def test_a_judge_with_a_folder_in_its_name_gets_one_file(server: AnswerServer, answers: Path, tmp_path: Path) -> None:
    server.say = graded
    (out := tmp_path / "out").mkdir()
    judge(server.url, "judge.model=org/judge")(answers, out=out)
    (line, *_) = lines_of(out / "model_judgment" / "org--judge_single.jsonl")
    assert line["judge"] == ["org/judge", "single-v1"]


# Resuming ----------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_twice(
    server: AnswerServer, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server refuses the key in the middle; what was said before is kept."""
    server.say = lambda body, number: graded(body, number) if number < 5 else Step(status=401)
    with pytest.raises(UserError, match=r"benchmark.mt_bench.judge: 127.0.0.1:\d+ refused the key .*replies so far"):
        asked(judge(server.url, "judge.concurrent=1"), answers, tmp_path / "out")
    assert not (tmp_path / "out" / "model_judgment").exists()
    server.say = graded
    whole = asked(judge(server.url), answers, tmp_path / "out")
    texts = [body["messages"][1]["content"] for body in server.bodies]
    assert len(texts) == TOTAL + 1 and len(set(texts)) == TOTAL
    assert "11 requests to make, 5 replies known" in capsys.readouterr().out
    assert asked(judge(server.url), answers, tmp_path / "out") == whole and len(server.bodies) == TOTAL + 1
    assert asked(judge(server.url), answers, tmp_path / "fresh") == whole and len(server.bodies) == 2 * TOTAL + 1
    assert KEY not in "".join(path.read_text() for path in tmp_path.rglob("*.json*"))


def test_a_bad_reply_costs_none_that_is_in_flight(server: AnswerServer, answers: Path, tmp_path: Path) -> None:
    """One has no rating while three are on their way: those are kept, and no fifth is asked for."""
    arrived = threading.Barrier(4)

    def say(body: dict[str, Any], number: int) -> str:
        arrived.wait(60)
        if number == 0:
            return "As an AI"
        time.sleep(1)  # until the bad one is surely looked at
        return graded(body, number)

    server.say = say
    with pytest.raises(UserError, match="1 of 16 replies of gpt-4 hold no rating"):
        asked(judge(server.url, "judge.concurrent=4"), answers, tmp_path / "out")
    assert len(server.bodies) == 4
    server.say = graded
    asked(judge(server.url, "unrated_share_limit=0.1"), answers, tmp_path / "out")
    assert len(server.bodies) == TOTAL


def test_a_busy_server_is_asked_again(server: AnswerServer, answers: Path, tmp_path: Path) -> None:
    server.say = lambda body, number: Step(status=429) if number % 2 == 0 else graded(body, number)
    judged = asked(judge(server.url, "judge.concurrent=1"), answers, tmp_path / "out")
    assert len(server.bodies) == 2 * TOTAL and all(row["score"] > 0 for row in judged)


def test_replies_depend_on_the_judge_and_not_on_limits_or_the_address() -> None:
    published = judge("http://a/v1").shared()
    same = ("unrated_share_limit=1.0", "judge.concurrent=1", "judge.input_price=1.0", "judge.retries=1")
    assert all(judge("http://b/v1", one).shared() == published for one in same)
    other = ("judge.model=gpt-4-0613", "judge.temperature=1.0", "judge.max_tokens=5", "judge.seed=1")
    assert len({json.dumps(judge("http://a/v1", one).shared()) for one in other}) == len(other)
    assert all(judge("http://a/v1", one).shared() != published for one in other)


# Judges that are of no use -----------------------------------------------------------------------------------------


def test_replies_without_a_rating_are_kept_and_counted(server: AnswerServer, answers: Path, tmp_path: Path) -> None:
    """Two of 16 are within a limit of 0.2; a second look at them costs nothing."""
    server.say = lambda body, number: graded(body, number) if number > 1 else Said("I would rather", "length")
    judged = asked(judge(server.url, "unrated_share_limit=0.2"), answers, tmp_path / "out")
    bad = [row for row in judged if row["score"] == -1]
    assert [row["judgment"] for row in bad] == ["I would rather"] * 2 and numbers(tmp_path / "out")["unrated"] == 2
    with pytest.raises(UserError, match="2 of 16 replies of gpt-4 hold no rating, more than 0.05 of them"):
        asked(judge(server.url), answers, tmp_path / "out")
    assert len(server.bodies) == TOTAL


def test_too_many_replies_without_a_rating_end_it(server: AnswerServer, answers: Path, tmp_path: Path) -> None:
    server.say = lambda body, number: "As an AI"
    line = (
        r"^benchmark.mt_bench.judge: 1 of 16 replies of gpt-4 hold no rating, more than 0.05 of them, such as "
        r"'As an AI'; take another judge, or raise benchmark.mt_bench.unrated_share_limit: replies are kept"
    )
    for _ in range(2):
        with pytest.raises(UserError, match=line):
            asked(judge(server.url, "judge.concurrent=1"), answers, tmp_path / "out")
        assert len(server.bodies) == 1
    assert not (tmp_path / "out" / "model_judgment").exists()
    judged = asked(judge(server.url, "unrated_share_limit=1.0"), answers, tmp_path / "out")
    assert [row["score"] for row in judged] == [-1] * TOTAL and len(server.bodies) == TOTAL


def test_a_hopeless_judge_is_asked_20_times(server: AnswerServer, tmp_path: Path) -> None:
    """79 replies without a rating of 80 would be within the limit."""
    answers = conversation(tmp_path, [lambda q: f"one {q}", lambda q: f"two {q}"], first=5)["answers"]
    server.say = lambda body, number: "As an AI"
    few = judge(server.url, "judge.concurrent=1", "unrated_share_limit=0.99")
    with pytest.raises(UserError, match="none of the first 20 replies of gpt-4 holds a rating, such as 'As an AI'"):
        asked(few, answers, tmp_path / "out")
    assert len(server.bodies) == 20
    server.say = lambda body, number: graded(body, number) if number == 20 else "As an AI"
    with pytest.raises(UserError, match="none of the first 20"):
        asked(few, answers, tmp_path / "out")
    assert len(server.bodies) == 20


def test_a_text_that_is_refused_counts_as_fastchat_counts_it(
    server: AnswerServer, answers: Path, tmp_path: Path
) -> None:
    """It costs nothing, so it is asked again another time."""
    row = next(row for row in read_rows(answers, REQUESTS) if (row["question_id"], row["turn"]) == (111, 2))

    def say(body: dict[str, Any], number: int) -> str | Step:
        return REFUSAL if body["messages"][1]["content"] == row["user_prompt"] else graded(body, number)

    server.say = say
    patient = judge(server.url, "unrated_share_limit=0.1")
    judged = {(one["question_id"], one["turn"]): one for one in asked(patient, answers, tmp_path / "out")}
    assert (judged[111, 2]["judgment"], judged[111, 2]["score"]) == ("$ERROR$", -1)
    assert [key for key, one in judged.items() if one["score"] == -1] == [(111, 2)]
    counts = numbers(tmp_path / "out")
    assert (counts["unrated"], counts["refused"], counts["judgments"]) == (1, 1, TOTAL)
    with pytest.raises(UserError, match="'refused: 400: .*too long.*'; look at the server, take another judge"):
        asked(judge(server.url), answers, tmp_path / "out")
    server.say = graded
    assert asked(patient, answers, tmp_path / "out")[7]["score"] > 0 and len(server.bodies) == TOTAL + 2
