"""The laws of asking a chat model behind HTTP: nothing is paid for twice, and what goes wrong is one line.

The judge that gives points asks, in place of all that do so: of a scripted server on loopback.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from answer_server import KEY, AnswerServer, Said
from judge_server import judge, numbered, row

from src.kernel.cells import CELLS, Cells
from src.kernel.config import Fault, Stopped, UserError
from src.modeling import asking
from src.modeling.asking import in_flight
from src.modeling.endpoint import Client

COUNT = 24
ONE = "endpoint.concurrent=1"


def replies(place: Path) -> dict[str, Any]:
    return Cells(place / CELLS).values


def rank(server: AnswerServer, place: Path, answers: list[str], *words: str) -> list[float]:
    return judge("points", server.url, *words).rank([row("q", answers)], (), place)[0]["scores"]


def test_each_question_is_asked_once_and_a_failure_loses_no_reply(
    server: AnswerServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two replies come before the server refuses the key; the next command asks for the others alone."""
    bad = Said(status=401, body=json.dumps({"error": {"message": f"wrong {KEY}"}}))
    server.say = lambda body, number: "4" if number < 2 else bad
    with pytest.raises(UserError, match="^ranker.endpoint: 127.0.0.1:.* refused the key .*the same command") as error:
        rank(server, tmp_path, numbered(COUNT), ONE)
    assert "\n" not in str(error.value) and not isinstance(error.value, Fault)
    assert len(replies(tmp_path)) == 2 and len(server.bodies) == 3
    server.say = lambda body, number: "4"
    for _ in range(2):
        rank(server, tmp_path, numbered(COUNT))
        assert len(server.bodies) == COUNT + 1
        assert len({json.dumps(body["messages"]) for body in server.bodies}) == COUNT
    out, err = capfd.readouterr()
    assert f"{COUNT - 2} requests to make, 2 replies known, about " in out
    assert f"{COUNT - 2} answers, {10 * (COUNT - 2)} input and {3 * (COUNT - 2)} output tokens" in out
    files = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in out + err + files + str(error.value) and server.keys == {f"Bearer {KEY}"}


def test_replies_under_way_when_another_fails_are_kept(server: AnswerServer, tmp_path: Path) -> None:
    """Of three requests in flight one fails. Another may take the place of one that ends before that is known."""
    together, failed = threading.Barrier(3), threading.Event()

    def say(body: dict[str, Any], number: int) -> str | Said:
        if number < 3:
            together.wait(60)
        if number == 1:
            failed.set()
            return Said(status=404, body="{}")
        failed.wait(60)
        return "4"

    server.say = say
    with pytest.raises(UserError, match="knows no"):
        rank(server, tmp_path, numbered(COUNT), "endpoint.concurrent=3")
    assert len(replies(tmp_path)) == len(server.bodies) - 1 >= 2
    server.say = lambda body, number: "4"
    rank(server, tmp_path, numbered(COUNT))
    assert len(server.bodies) == COUNT + 1


def test_a_signal_stops_it_and_keeps_what_came_and_what_is_under_way(server: AnswerServer, tmp_path: Path) -> None:
    """The signal comes while the third request is answered. A fourth is not made."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    def say(body: dict[str, Any], number: int) -> str:
        if number == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return "4"

    server.say, before = say, signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(Stopped):
            rank(server, tmp_path, numbered(COUNT), ONE)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(replies(tmp_path)) == len(server.bodies) == 3


def create(client: Client) -> None:
    chat: Any = [{"role": "user", "content": "x"}]
    client.ask(lambda openai: openai.chat.completions.create(model="m", messages=chat), lambda response: None)


def test_a_server_that_hangs_holds_no_process_that_is_told_to_stop(
    server: AnswerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "STOPPED_S", 0.0)
    server.say = lambda body, number: Said(hang=True)

    def stopped(flying: int) -> bool:
        if flying == 2:
            raise Stopped(signal.SIGTERM)
        return True

    client = Client(judge("points", server.url, "endpoint.concurrent=3").endpoint, "ranker.endpoint")
    with client, pytest.raises(Stopped):
        in_flight(client, range(9), lambda job: create(client), stopped)


PASSING = [
    *(Said(status=429, body='{"error": {"message": "slow down"}}'), Said(status=500, body="<html>")),
    *(Said(body="{", headers={"content-length": "9"}), Said(body="<html>", headers={"content-type": "text/html"})),
    *(Said(body='{"id": "x", "choi'), Said(body='{"choices": []}')),
]


def test_what_passes_is_tried_again(server: AnswerServer, tmp_path: Path) -> None:
    for number, reply in enumerate(PASSING):
        server.bodies.clear()
        server.say = lambda body, number, reply=reply: reply if number < 2 else "4"
        assert rank(server, tmp_path / str(number), ["a"]) == [4] and len(server.bodies) == 3, reply


def test_what_does_not_pass_is_one_line_that_hides_the_key(server: AnswerServer, tmp_path: Path) -> None:
    """More such lines are in the table of bad inputs."""
    unreadable = "^ranker.endpoint.base_url: .* answered with no completion"
    for number, (reply, line, kind) in enumerate(
        (
            (Said(status=500, body=f"key {KEY}"), r"^ranker.endpoint.base_url: .* failed \(500: key \*\*\*", Fault),
            *((reply, unreadable, Fault) for reply in PASSING[4:]),
            (Said([{"type": "text", "text": "4"}]), unreadable, Fault),
            (Said(status=405, body="{}"), "^ranker.endpoint.base_url: .* refused ", UserError),
        )
    ):
        server.say = lambda body, number, reply=reply: reply
        with pytest.raises(UserError, match=line) as error:
            rank(server, tmp_path / str(number), ["a"])
        assert "\n" not in str(error.value) and KEY not in str(error.value) and type(error.value) is kind


def test_requests_keep_the_rate_and_retries_are_counted(server: AnswerServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that stands still the turns are a second apart, and a retry is a turn."""
    monkeypatch.setattr("src.modeling.endpoint.time.monotonic", lambda: 100.0)
    server.say = lambda body, number: PASSING[0] if number == 0 else "4"
    for rate, waits in (("60.0", [0, 1, 2]), ("null", [0, 0])):
        client = Client(judge("points", server.url, f"endpoint.requests_per_minute={rate}").endpoint, "ranker.endpoint")
        waited: list[float] = []
        monkeypatch.setattr(client.stop, "wait", waited.append)
        create(client)
        create(client)
        assert waited == waits


def test_useless_replies_end_it_once_the_limit_is_certain_to_be_passed(
    server: AnswerServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """11 of 50 are more than 0.2, and known before all are paid for. 19 of 100 are not: one that is read is hope.

    A server that is useless from the first reply on is asked no more than 20 times, however many are in flight.
    """
    server.say = lambda body, number: "As an AI" if number else "4"
    with pytest.raises(UserError, match=r"^ranker.malformed_share_limit: 11 of 50 .* 'As an AI'; mend ranker.verdict"):
        rank(server, tmp_path / "few", numbered(50), ONE)
    assert len(server.bodies) == 12
    server.bodies.clear()
    server.say = lambda body, number: "?" if number < 19 else "4"
    rank(server, tmp_path / "hope", numbered(100), ONE)
    assert len(server.bodies) == 100 and "19 of 100 replies are not a verdict" in capsys.readouterr().err
    server.bodies.clear()
    server.say = lambda body, number: "?"
    for _ in range(2):
        with pytest.raises(UserError, match="none of the first 20 replies of"):
            rank(server, tmp_path / "none", numbered(100), "endpoint.concurrent=64")
        assert len(server.bodies) == 20, "replies are kept, also those that are no verdict"
    assert rank(server, tmp_path / "any", ["a"], "malformed_share_limit=1.0") == [3.5]


def test_a_server_without_a_key_is_asked_and_an_odd_key_is_refused_unseen(
    server: AnswerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line end around a key is no harm."""
    server.say = lambda body, number: "4"
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\r\n")
    rank(server, tmp_path / "key", ["a"])
    monkeypatch.setenv("OPENAI_API_KEY", "sk\nx")
    with pytest.raises(UserError, match="^OPENAI_API_KEY: holds a character that no key has; copy it again$"):
        rank(server, tmp_path / "odd", ["a"])
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    rank(server, tmp_path / "none", ["a"], "endpoint.base_url=null")
    assert server.keys == {f"Bearer {KEY}", "Bearer none"}
