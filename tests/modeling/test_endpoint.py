"""The judges against a small HTTP server on loopback: what is retried, refused, paced and kept."""

from __future__ import annotations

import json
import math
import signal
import socket
import threading
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from judge_server import KEY, Server, Step, await_cells, judge, longer_wins, numbered, row, serving, terms
from pytest import CaptureFixture, MonkeyPatch

from src.kernel.cells import Cells
from src.kernel.config import Stopped, UserError, fingerprint
from src.modeling import endpoint
from src.modeling.endpoint import Client, retry_after_s, same_model
from src.ranking import asking
from src.ranking.stage import Rank


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


PASSING = [
    Step(status=429, body='{"error": {"message": "slow down"}}', headers={"retry-after": "0"}),
    Step(status=500, body="<html>"),
    Step(status=503, body="{}"),
    Step(body='{"id": "x", "choi'),
    Step(body="{", headers={"content-length": "9"}),
    Step(body="<html>", headers={"content-type": "text/html"}),
    Step(body='{"error": {"message": "busy"}}'),
    Step(body='{"choices": []}'),
]
SILENCE = Step(hang=True)


def check_retried(step: Step, server: Server, place: Path, *words: str) -> None:
    server.bodies.clear()
    server.script = lambda text, number: step if number < 2 else "4"
    assert judge("points", server.url, *words).rank([row("q", ["a"])], (), place)[0]["scores"] == [4]
    assert len(server.bodies) == 3, step


def test_what_passes_is_tried_again_and_counted(server: Server, tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    for number, step in enumerate(PASSING):
        check_retried(step, server, tmp_path / str(number))
        assert "1 verdicts, 0 of them malformed, 2 retries, 100 input and 2 output" in capsys.readouterr().out


def check_lost(step: Step, line: str, server: Server, place: Path, *words: str) -> str:
    """The judge answers two requests before it falls; they are not asked again."""
    server.bodies.clear()
    server.script = lambda text, number: "4" if number < 2 else step
    ranker = judge("points", server.url, *words, "endpoint.concurrent=1")
    rows = [row("q", ["a", "b", "c", "d"])]
    with pytest.raises(UserError, match=line) as error:
        ranker.rank(rows, (), place)
    message = str(error.value)
    assert "\n" not in message and f"127.0.0.1:{server.server_port}" in message
    server.script, before = lambda text, number: "5", len(server.bodies)
    assert sorted(ranker.rank(rows, (), place)[0]["scores"]) == [4, 4, 5, 5]
    assert len(server.bodies) == before + 2
    return message


def test_what_does_not_pass_is_one_line_and_finished_verdicts_are_kept(
    server: Server, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    """Nobody is shown the key, and no file holds it."""
    said = ""
    for number, (step, line) in enumerate(
        (
            (PASSING[0], "^ranker.endpoint.requests_per_minute: .*, 3 times; lower it"),
            (PASSING[1], "^ranker.endpoint.base_url: .* failed .*500.*, 3 times"),
            (PASSING[3], "^ranker.endpoint.base_url: .* answered with no completion .*, 3 times"),
            (Step(status=401, body=json.dumps({"error": {"message": f"wrong {KEY}"}})), "OPENAI_API_KEY"),
            (Step(status=404, body="{}"), "^ranker.endpoint.model: .* knows no gpt-4.1-mini"),
            (Step(status=405, body="{}"), "^ranker.endpoint.base_url: .* refused "),
            (Step(status=500, body=json.dumps({"error": {"message": f"key {KEY}"}})), r"failed .*key \*\*\*"),
            (Step(status=429, body="{}", headers={"retry-after": "3600"}), "^ranker.endpoint.requests_per_minute"),
        )
    ):
        said += check_lost(step, line, server, tmp_path / str(number))
    assert server.keys == {f"Bearer {KEY}"}
    shown = capsys.readouterr()
    files = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in said + shown.out + shown.err + files and "4" in files


@pytest.mark.faults
def test_silence_is_tried_again_and_then_one_line(server: Server, tmp_path: Path) -> None:
    check_retried(SILENCE, server, tmp_path / "short", "endpoint.timeout_s=1")
    line = "^ranker.endpoint.timeout_s: .* no answer within 1 s, 3 times; raise it"
    check_lost(SILENCE, line, server, tmp_path / "long", "endpoint.timeout_s=1")


def test_a_date_an_owner_or_a_commit_makes_no_other_model() -> None:
    same = [
        ("gpt-4", "gpt-4-0613"),
        ("gpt-4-turbo", "gpt-4-turbo-2024-04-09"),
        ("claude-x", "claude-x-20250219"),
        ("openai/gpt-4o", "gpt-4o-2024-08-06"),
        ("models/it1/policy/", "Policy@main"),
        ("x", ""),
    ]
    different = [("gpt-4", name) for name in ("gpt-4o", "gpt-4.1", "gpt-4-turbo", "llama")] + [("qwen2", "qwen2-72b")]
    assert [pair for pair in same if not (same_model(*pair) and same_model(*pair[::-1]))] == []
    assert [pair for pair in different if same_model(*pair) or same_model(*pair[::-1])] == []


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"^ranker\.endpoint\.base_url: {host} cannot be reached"):
            judge("points", f"http://{host}/v1").rank([row("q", ["a"])], (), tmp_path)


def test_a_server_without_a_key_is_asked_all_the_same(server: Server, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    server.script = lambda text, _: "4"
    judge("points", "null").rank([row("q", ["a"])], (), tmp_path)
    assert server.keys == {"Bearer none"}


def test_a_key_that_cannot_be_sent_is_not_shown(server: Server, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
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
    """Nobody is answered before three are there, and never are more."""
    together, inside, most = threading.Barrier(3), threading.Semaphore(3), []

    def answer(text: str, _: int) -> str:
        most.append(inside.acquire(blocking=False))
        together.wait(300)
        inside.release()
        return "4"

    server.script = answer
    ranker = judge("points", server.url, "endpoint.concurrent=3", "endpoint.retries=0")
    assert ranker.rank([row("q", list("abcdef"))], (), tmp_path)[0]["scores"] == [4] * 6
    assert all(most), "a fourth was in flight"


def waits(server: Server, requests: int, monkeypatch: MonkeyPatch, *words: str) -> list[float]:
    """Seconds that a client waits before each attempt, on a clock that stands still."""
    monkeypatch.setattr(endpoint, "time", SimpleNamespace(monotonic=lambda: 100.0, time=lambda: 0.0))
    found: list[float] = []
    client = Client(judge("points", server.url, *words).endpoint, "ranker.endpoint")
    client.stop = SimpleNamespace(wait=lambda seconds: found.append(seconds))  # type: ignore[assignment]
    chat: Any = [{"role": "user", "content": "x"}]
    for _ in range(requests):
        client.ask(lambda openai: openai.chat.completions.create(model="m", messages=chat))
    client.close()
    return found


def test_the_server_says_how_long_to_wait(server: Server, monkeypatch: MonkeyPatch) -> None:
    """In seconds or as a date; what cannot be read is nothing."""
    server.script = lambda text, number: "4" if number else Step(status=429, body="{}", headers={"retry-after": "7"})
    assert waits(server, 1, monkeypatch) == [0, 7, 0]
    assert retry_after_s("3") == 3
    assert retry_after_s(formatdate(30, usegmt=True)) == 30
    assert [retry_after_s(header) for header in ("", "soon", "-1", "nan", formatdate(-9, usegmt=True))] == [0] * 5


def test_requests_keep_the_rate(server: Server, monkeypatch: MonkeyPatch) -> None:
    server.script = lambda text, number: "4"
    assert waits(server, 4, monkeypatch, "endpoint.requests_per_minute=60.0") == [0, 1, 2, 3]
    assert waits(server, 2, monkeypatch, "endpoint.requests_per_minute=null") == [0, 0]


REFUSAL = Step(status=400, body='{"error": {"message": "no field top_logprobs"}}')


def test_a_hopeless_judge_is_asked_20_times(server: Server, tmp_path: Path) -> None:
    """100 malformed verdicts of 500 would be within the limit; a text that is refused costs nothing to ask again."""
    for reply, line, again in (
        ("As an AI", "^ranker.verdict_pattern: none of the first 20 .*'As an AI'", 20),
        (REFUSAL, "^ranker.endpoint: none of the first 20 .*no field top_logprobs", 40),
    ):
        server.bodies.clear()
        server.script = lambda text, _, reply=reply: reply
        ranker, rows, work = judge("points", server.url), [row("q", numbered(500))], tmp_path / str(again)
        for requests in (20, again):
            with pytest.raises(UserError, match=line):
                ranker.rank(rows, (), work)
            assert len(server.bodies) == requests


def test_one_verdict_that_can_be_read_is_hope(server: Server, tmp_path: Path) -> None:
    """19 malformed of 100 are within the limit of 0.2."""
    server.script = lambda text, number: "?" if number < 19 else "4"
    ranker, rows = judge("points", server.url, "endpoint.concurrent=1"), [row("q", numbered(100))]
    ranker.rank(rows, (), tmp_path)
    assert len(server.bodies) == 100


def test_too_many_malformed_verdicts_are_not_paid_to_the_end(server: Server, tmp_path: Path) -> None:
    """11 of 50 are more than 0.2."""
    server.script = lambda text, number: "As an AI" if number else "4"
    with pytest.raises(UserError, match=r"^ranker.malformed_share_limit: \d+ of 50"):
        judge("points", server.url, "endpoint.concurrent=1").rank([row("q", numbered(50))], (), tmp_path)
    assert 12 <= len(server.bodies) < 50


def test_a_mended_pattern_reads_kept_replies_with_their_log_probabilities(server: Server, tmp_path: Path) -> None:
    """A with 0.6 and B with 0.2: log 3. The tie that comes of a wrong pattern is no reason to ask again."""
    top = {"A": math.log(0.6), "B": math.log(0.2)}
    server.script = lambda text, _: Step("A", top=top)
    rows = [row("q", ["a", "b"])]
    wrong = judge("pairwise", server.url, "verdict_pattern='winner: (A|B)'", "malformed_share_limit=1.0")
    assert wrong.rank(rows, (), tmp_path)[0]["logits"][0][1] == 0
    mended = judge("pairwise", server.url, "strength=9.0")
    assert mended.rank(rows, (), tmp_path)[0]["logits"][0][1] == pytest.approx(math.log(3))
    assert len(server.bodies) == 2


READING = ["verdict_pattern='(A)'", "strength=1.0"]
FREE = ["name=n", "malformed_share_limit=0.5", "endpoint.concurrent=1"]
SENDING = ["instruction='{prompt}{first}{second}'", "top_logprobs=0", "endpoint.model=m", "endpoint.temperature=null"]
SENDING += ["endpoint.seed=1", "endpoint.max_tokens=9", "+endpoint.extra_body.a=1"]


def test_replies_are_shared_by_judges_that_send_the_same() -> None:
    usual = Rank(ranker=judge("pairwise", "http://x/v1"))
    others = {one: Rank(ranker=judge("pairwise", "http://x/v1", one)) for one in [*READING, *FREE, *SENDING]}
    assert {one for one, rank in others.items() if rank.shared() == usual.shared()} == {*READING, *FREE}
    assert {one for one, rank in others.items() if fingerprint(rank) == fingerprint(usual)} == {*FREE}


def test_what_another_process_has_got_is_not_asked_for(
    server: Server, tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]
) -> None:
    """While the third of ten requests is in flight, another ranks all: eight requests, of which that third is one."""
    monkeypatch.setattr(asking, "REFRESH_S", 0.0)
    ranker, twin = (judge("points", server.url, "endpoint.concurrent=1") for _ in range(2))
    rows = [row("q", numbered(10))]

    def script(text: str, number: int) -> str:
        if number == 2:
            await_cells(tmp_path, 2)
            twin.rank(rows, (), tmp_path)
        return "4"

    server.script = script
    assert ranker.rank(rows, (), tmp_path)[0]["scores"] == [4] * 10
    assert len(server.bodies) == 3 + 8
    assert "3 verdicts, 0 of them malformed, " in (said := capsys.readouterr().out)
    assert ", 7 verdicts from other processes" in said


def test_nothing_is_asked_twice(server: Server, tmp_path: Path) -> None:
    """2 answers: 2 requests; a third: its 4; the same answers again, elsewhere or doubled: none."""
    server.script = longer_wins
    ranker = judge("pairwise", server.url)
    for answers, requests in ((["a", "bb"], 2), (["a", "bb"], 2), (["a", "ccc", "bb"], 6), (["bb", "a", "bb"], 6)):
        ranking, twin = ranker.rank([row("q", answers)] * 2, (), tmp_path)
        assert len(server.bodies) == requests
        assert str(ranking) == str(twin)
    np.testing.assert_equal(np.array(ranking["logits"])[0], [math.nan, 2, 0])
    assert sum(terms(ranking)["judge_input_tokens"]) == 2 * 100, "the pair of two texts, in both orders"


def test_what_is_in_flight_when_another_request_fails_is_kept(server: Server, tmp_path: Path) -> None:
    """It is paid for."""
    together = threading.Barrier(3)

    def script(text: str, number: int) -> str | Step:
        together.wait(60)
        return Step(status=404, body="{}") if "gone" in text else "4"

    server.script = script
    rows = [row("q", ["a", "b", "gone"])]
    ranker = judge("points", server.url, "endpoint.concurrent=3")
    with pytest.raises(UserError, match="knows no"):
        ranker.rank(rows, (), tmp_path)
    server.script = lambda text, _: "5"
    assert ranker.rank(rows, (), tmp_path)[0]["scores"] == [4, 4, 5]


def test_a_stop_ends_it_at_once_and_finished_verdicts_are_kept(
    server: Server, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """As a signal would, while the third verdict is saved. The fourth request never ends."""
    server.script = lambda text, number: "4" if number < 3 else Step(hang=True)
    ranker = judge("points", server.url, "endpoint.concurrent=1")
    rows, saved, add = [row("q", list("abcde"))], [], Cells.add

    def stopped(self: Cells, values: dict[str, Any]) -> None:
        add(self, values)
        saved.extend(values)
        if len(saved) >= 3:
            raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Cells, "add", stopped)
        ranker.rank(rows, (), tmp_path)
    server.script = lambda text, number: "5"
    assert sorted(ranker.rank(rows, (), tmp_path)[0]["scores"]) == [4, 4, 4, 5, 5]
