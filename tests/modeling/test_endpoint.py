"""The judges against a small HTTP server on loopback: what is retried, refused, paced and told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from judge_server import KEY, Server, Step, judge, row, serving

from src.config import Fault, UserError, naming
from src.endpoint import Pace, retry_after_s, same_model


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


PASSING = {
    "429": Step(status=429, body='{"error": {"message": "slow down"}}', headers={"retry-after": "0"}),
    "500": Step(status=500, body="<html>"),
    "503": Step(status=503, body="{}"),
    "torn JSON": Step(body='{"id": "x", "choi'),
    "torn body": Step(body="{", headers={"content-length": "9"}),
    "no JSON": Step(body="<html>", headers={"content-type": "text/html"}),
    "error in a good answer": Step(body='{"error": {"message": "busy"}}'),
    "no choice": Step(body='{"choices": []}'),
    "silence": Step(hang=True),
}


@pytest.mark.full
@pytest.mark.parametrize("step", PASSING.values(), ids=PASSING)
def test_what_passes_is_tried_again_and_counted(
    step: Step, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = lambda text, number: step if number < 2 else "4"
    ranker = judge("points", server.url, "endpoint.timeout_s=1", "endpoint.concurrent=1")
    assert ranker.rank([row("q", ["a"])], (), tmp_path)[0]["scores"] == [4]
    assert len(server.bodies) == 3
    assert "1 verdicts, 0 of them malformed, 2 retries, 100 input and 2 output tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "told", "same"),
    [
        ("gpt-4", "gpt-4-0613", True),
        ("gpt-4-turbo", "gpt-4-turbo-2024-04-09", True),
        ("claude-x", "claude-x-20250219", True),
        ("openai/gpt-4o", "gpt-4o-2024-08-06", True),
        ("models/it1/policy", "Policy", True),
        ("models/it1/policy/", "policy@main", True),
        ("x", "", True),
        ("gpt-4", "gpt-4o", False),
        ("gpt-4", "gpt-4.1", False),
        ("gpt-4", "gpt-4-turbo", False),
        ("qwen2", "qwen2-72b", False),
        ("gpt-4", "llama", False),
    ],
)
def test_a_date_an_owner_or_a_commit_makes_no_other_model(asked: str, told: str, same: bool) -> None:
    assert same_model(asked, told) == same_model(told, asked) == same


def test_replies_that_name_another_model_are_counted_and_told_once(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of three; they are kept: who asks a gateway may mean it."""
    replies = ["", "llama-3-8b", "llama-3-8b"]

    def script(text: str, number: int) -> Step:
        body = {"model": "gpt-4.1-mini-2025-04-14", "choices": [{"message": {"content": "4"}, "finish_reason": "stop"}]}
        return Step(body=json.dumps(body | ({"model": replies[number]} if replies[number] else {})))

    server.script = script
    ranker = judge("points", server.url, "endpoint.concurrent=1")
    assert ranker.rank([row("q", ["a", "b", "c"])], (), tmp_path)[0]["scores"] == [4, 4, 4]
    told = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert told == [
        f"ranker.endpoint.model: warning: asked for gpt-4.1-mini-2025-04-14, 127.0.0.1:{server.server_port} named "
        "'llama-3-8b' in 2 replies; is that the model you mean?"
    ]


FOREVER = [
    (PASSING["429"], "ranker.endpoint.requests_per_minute: .* says it is too much .*, 3 times; lower it"),
    (PASSING["500"], "ranker.endpoint.base_url: .* failed .*500.*, 3 times"),
    (PASSING["torn JSON"], "ranker.endpoint.base_url: .* answered with no completion .*, 3 times"),
    (PASSING["silence"], "ranker.endpoint.timeout_s: .* no answer within 1 s, 3 times; raise it"),
    (
        Step(status=401, body=json.dumps({"error": {"message": f"wrong key {KEY}"}})),
        "refused the key .* OPENAI_API_KEY",
    ),
    (
        Step(status=404, body='{"error": {"message": "no such model"}}'),
        "ranker.endpoint.model: .* knows no gpt-4.1-mini",
    ),
    (Step(status=405, body="{}"), "ranker.endpoint.base_url: .* refused "),
    (Step(status=500, body=json.dumps({"error": {"message": f"key {KEY}"}})), r"failed .*key \*\*\*"),
    (Step(status=429, body="{}", headers={"retry-after": "3600"}), "says it is too much .* lower it"),
]


@pytest.mark.full
@pytest.mark.parametrize(("step", "line"), FOREVER, ids=[f"{step.status} {line[:30]}" for step, line in FOREVER])
def test_what_does_not_pass_is_one_line_and_finished_verdicts_are_kept(
    step: Step, line: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The judge answers two requests before it falls; nobody is shown the key, and no file holds it."""
    server.script = lambda text, number: "4" if number < 2 else step
    ranker = judge("points", server.url, "endpoint.timeout_s=1", "endpoint.concurrent=1")
    rows = [row("q", ["a", "b", "c", "d"])]
    with pytest.raises(UserError, match=line) as error:
        ranker.rank(rows, (), tmp_path)
    message = str(error.value)
    assert "\n" not in message and f"127.0.0.1:{server.server_port}" in message and "the same command" in message
    server.script, before = lambda text, number: "5", len(server.bodies)
    assert sorted(ranker.rank(rows, (), tmp_path)[0]["scores"]) == [4, 4, 5, 5]
    assert len(server.bodies) == before + 2
    assert server.keys == {f"Bearer {KEY}"}
    said = capsys.readouterr()
    files = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in message + said.out + said.err + files and "4" in files


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ranker.endpoint.base_url: 127.0.0.1:9 cannot be reached .*server running"):
        judge("points", "http://127.0.0.1:9/v1").rank([row("q", ["a"])], (), tmp_path)


@pytest.mark.parametrize("kind", [UserError, Fault])
def test_a_judge_of_another_key_keeps_its_exit_code(kind: type[UserError]) -> None:
    with (
        pytest.raises(UserError, match="^benchmark.x.judge.endpoint: down$") as told,
        naming("ranker", "benchmark.x.judge"),
    ):
        raise kind("ranker.endpoint: down")
    assert type(told.value) is kind


def test_a_server_without_a_key_is_asked_all_the_same(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    server.script = lambda text, _: "4"
    judge("points", "null").rank([row("q", ["a"])], (), tmp_path)
    assert server.keys == {"Bearer none"}


def test_a_key_that_cannot_be_sent_is_not_shown(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line end around it is no harm."""
    server.script = lambda text, _: "4"
    for inner in ("\n", "\r", "é"):
        monkeypatch.setenv("OPENAI_API_KEY", f"sk{inner}x")
        with pytest.raises(UserError, match="^OPENAI_API_KEY: holds a character that no key has; copy it again$"):
            judge("points", server.url).rank([row("q", ["a"])], (), tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\r\n")
    judge("points", server.url).rank([row("q", ["a"])], (), tmp_path)
    assert server.keys == {f"Bearer {KEY}"}


def test_as_many_requests_as_allowed_are_in_flight(server: Server, tmp_path: Path) -> None:
    """Nobody is answered before three are there; a fourth would not meet another two."""
    together = threading.Barrier(3)
    server.script = lambda text, _: f"{together.wait(5) % 1 + 4}"
    ranker = judge("points", server.url, "endpoint.concurrent=3", "endpoint.retries=0")
    assert ranker.rank([row("q", list("abcdef"))], (), tmp_path)[0]["scores"] == [4] * 6


def test_the_server_says_how_long_to_wait(server: Server, tmp_path: Path) -> None:
    wait = Step(status=429, body="{}", headers={"retry-after": "0.4"})
    server.script = lambda text, number: "4" if number else wait
    judge("points", server.url).rank([row("q", ["a"])], (), tmp_path)
    assert server.times[1] - server.times[0] >= 0.4


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s("3") == 3
    assert 28 < retry_after_s(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert [retry_after_s(header) for header in ("", "soon", "-1", "nan", formatdate(0, usegmt=True))] == [0] * 5


def test_requests_keep_the_rate(server: Server, tmp_path: Path) -> None:
    """1200 a minute: a twentieth of a second between any two, of which the network may eat a bit."""
    server.script = lambda text, _: "4"
    judge("points", server.url, "endpoint.requests_per_minute=1200.0").rank([row("q", list("abcdefgh"))], (), tmp_path)
    assert server.times[-1] - server.times[0] >= 7 * 0.05 - 0.04
    turns = [Pace(60).wait_s(), *(lambda pace: [pace.wait_s() for _ in range(3)])(Pace(60))]
    assert turns == pytest.approx([0, 0, 1, 2], abs=0.1)
    assert [wait for pace in [Pace(None)] for wait in (pace.wait_s(), pace.wait_s())] == [0, 0]


def test_what_it_will_cost_is_said_before_and_what_it_did_cost_after(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two requests of 400 + 6 characters at 10 a million input tokens and 100 a million output tokens, replies of 8."""
    server.script = lambda text, number: "4"
    prices = ["endpoint.input_price=10.0", "endpoint.output_price=100.0", "instruction='{prompt}{answer}:{fence}'"]
    ranker = judge("points", server.url, *prices)
    ranker.rank([row("q" * 391, ["a", "b"])], (), tmp_path)
    before, after = [line for line in capsys.readouterr().out.splitlines() if line.startswith("judge gpt")]
    assert f"at 127.0.0.1:{server.server_port}: 2 requests to make, 0 verdicts known, about 200 input tokens" in before
    assert before.endswith("cost about 0.0036")  # 200 * 10 / 1e6 + 2 * 8 * 100 / 1e6
    assert "200 input and 4 output tokens, cost 0.0024, " in after
    ranker.rank([row("q" * 391, ["a", "b"])], (), tmp_path)
    assert capsys.readouterr().out.splitlines()[-1].endswith("0 requests to make, 2 verdicts known")
