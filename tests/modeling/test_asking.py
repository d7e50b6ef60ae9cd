"""The laws of asking, for each of the four that ask a chat model: a ranker's judge, two benchmarks', outside answers.

Each asks some 30 questions of a scripted server on loopback, and its replies lie in `place`.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from alpaca_eval_made_up import longer, outputs
from answer_server import KEY, AnswerServer, Said, answering
from hydra.utils import instantiate
from judge_server import benchmark_judge, judge, numbered, row
from mt_bench_made_up import conversation, graded
from tiny_generation import write_prompts
from tiny_run import composed

from src.evaluation.alpaca_eval.files import BASELINE, OUTPUTS
from src.evaluation.alpaca_eval.judge import AlpacaEvalAnnotations
from src.evaluation.mt_bench.scores import Judge
from src.kernel.cells import Cells
from src.kernel.config import Fault, Stopped, UserError
from src.modeling import asking
from src.modeling.asking import in_flight
from src.modeling.endpoint import Client

COUNT = 24
REFUSAL = Said(status=400, body='{"error": {"message": "no such field"}}')


class User(NamedTuple):
    """Who asks."""

    run: Callable[..., Any]
    """Of a server, a folder for the replies, a folder of inputs, and words for the endpoint."""
    say: Callable[[AnswerServer], Callable[[dict[str, Any], int], str | Said]]
    """What a useful server says."""
    key: str
    """The endpoint's."""


def points(server: AnswerServer, place: Path, inputs: Path, *words: str) -> None:
    words = tuple(f"endpoint.{word}" for word in words)
    judge("points", server.url, *words).rank([row("q", numbered(COUNT))], (), place / "work")


def alpaca_eval(server: AnswerServer, place: Path, inputs: Path, *words: str) -> None:
    if not (inputs / OUTPUTS).exists():
        questions = [f"Question {i}" for i in range(COUNT)]
        outputs(inputs / BASELINE, [f"Base {i}" for i in range(COUNT)], "baseline", questions)
        outputs(inputs / OUTPUTS, [f"An answer {i}" for i in range(COUNT)], "model", questions)
    asked = benchmark_judge("alpaca_eval", server.url, *(f"endpoint.{word}" for word in words))
    AlpacaEvalAnnotations(judge=asked, key="benchmark.alpaca_eval.judge")(inputs, out=place)


def mt_bench(server: AnswerServer, place: Path, inputs: Path, *words: str) -> None:
    endpoint = benchmark_judge("mt_bench", server.url, *words)
    Judge(endpoint=endpoint, key="benchmark.mt_bench.judge", unrated_share_limit=0.05)(inputs, out=place)


def outside(server: AnswerServer, place: Path, inputs: Path, *words: str) -> None:
    own = [f"data.answers.x.endpoint.{word}" for word in (f"base_url={server.url}", *words)]
    cfg = composed("+answers@data.answers.x=endpoint", "sampling.max_new_tokens=16", *own)
    source: Any = instantiate(cfg.data.answers.x, _convert_="all")
    source.stage("data.answers.x")(write_prompts(inputs, numbered(COUNT)), out=place)


USERS = {
    "points": User(points, lambda server: lambda body, number: "4", "ranker.endpoint"),
    "alpaca_eval": User(
        alpaca_eval, lambda server: lambda body, number: longer(server, number), "benchmark.alpaca_eval.judge.endpoint"
    ),
    "mt_bench": User(mt_bench, lambda server: graded, "benchmark.mt_bench.judge"),
    "outside": User(outside, lambda server: lambda body, number: f"answer {number}", "data.answers.x.endpoint"),
}
ONE = "concurrent=1"


@pytest.fixture
def server() -> Iterator[AnswerServer]:
    with answering() as server:
        yield server


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 requests to MT-Bench's judge."""
    made = conversation(tmp_path_factory.mktemp("mt"), [lambda q: f"one {q}", lambda q: f"two {q}"], first=2)
    return made["answers"]


@pytest.fixture(params=USERS)
def ask(request: pytest.FixtureRequest, server: AnswerServer, tmp_path: Path, conversations: Path) -> Any:
    """Asks everything, as a process of its own would; `ask.user` says who, `ask.total` how many requests it takes."""
    user = USERS[request.param]

    def run(*words: str, place: str = "out") -> None:
        (tmp_path / place).mkdir(exist_ok=True)
        inputs = conversations if request.param == "mt_bench" else tmp_path / "inputs"
        inputs.mkdir(exist_ok=True)
        user.run(server, tmp_path / place, inputs, *words)

    run.user, run.total = user, 32 if request.param == "mt_bench" else COUNT  # type: ignore[attr-defined]
    server.say = user.say(server)
    return run


def replies(place: Path) -> dict[str, Any]:
    """All cells below `place`."""
    folders = {path.parent for path in place.rglob("cells/*.jsonl")}
    return {key: value for folder in folders for key, value in Cells(folder).values.items()}


# Each of the four ---------------------------------------------------------------------------------------------------


def test_each_question_is_asked_once_and_a_failure_loses_no_reply(
    ask: Any, server: AnswerServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two replies come before the server refuses the key; the next command asks for the others alone."""
    useful = server.say
    bad = Said(status=401, body=json.dumps({"error": {"message": f"wrong {KEY}"}}))
    server.say = lambda body, number: useful(body, number) if number < 2 else bad
    with pytest.raises(UserError, match=f"^{ask.user.key}: 127.0.0.1:.* refused the key .*the same command") as error:
        ask(ONE)
    assert "\n" not in str(error.value) and not isinstance(error.value, Fault)
    assert len(replies(tmp_path)) == 2 and len(server.bodies) == 3
    server.say = lambda body, number: useful(body, number)
    for _ in range(2):
        ask()
        assert len(server.bodies) == ask.total + 1
        assert len({json.dumps(body["messages"]) for body in server.bodies}) == ask.total
    out, err = capfd.readouterr()
    assert f"{ask.total - 2} requests to make, 2 replies known, about " in out
    assert f"{ask.total - 2} answers, {10 * (ask.total - 2)} input and {3 * (ask.total - 2)} output tokens" in out
    files = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in out + err + files + str(error.value) and server.keys == {f"Bearer {KEY}"}


def test_replies_under_way_when_another_fails_are_kept(ask: Any, server: AnswerServer, tmp_path: Path) -> None:
    """Of three requests in flight one fails. Another may take the place of one that ends before that is known."""
    useful, together, failed = server.say, threading.Barrier(3), threading.Event()

    def say(body: dict[str, Any], number: int) -> str | Said:
        if number < 3:
            together.wait(60)
        if number == 1:
            failed.set()
            return Said(status=404, body="{}")
        failed.wait(60)
        return useful(body, number)

    server.say = say
    with pytest.raises(UserError, match="knows no"):
        ask("concurrent=3")
    assert len(replies(tmp_path)) == len(server.bodies) - 1 >= 2
    server.say = lambda body, number: useful(body, number)
    ask()
    assert len(server.bodies) == ask.total + 1


def test_a_signal_stops_it_and_keeps_what_came_and_what_is_under_way(
    ask: Any, server: AnswerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes while the third request is answered. A fourth is not made."""
    useful = server.say

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    def say(body: dict[str, Any], number: int) -> str | Said:
        if number == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return useful(body, number)

    server.say, before = say, signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(Stopped):
            ask(ONE)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(replies(tmp_path)) == len(server.bodies) == 3
    server.say = lambda body, number: useful(body, number)
    ask()
    assert len(server.bodies) == ask.total


def test_a_hopeless_server_is_asked_no_more_than_20_times(ask: Any, server: AnswerServer) -> None:
    server.say = lambda body, number: REFUSAL
    with pytest.raises(UserError, match=r"^\S+: (none of|\d+ of) .* replies of .*refused: 400: .*no such field"):
        ask("concurrent=64")
    assert len(server.bodies) <= asking.TRIAL


# The points judge, for what is the same for all ---------------------------------------------------------------------


def ranked(url: str, place: Path, answers: list[str], *words: str) -> list[float]:
    return judge("points", url, *words).rank([row("q", answers)], (), place)[0]["scores"]


PASSING = [
    Said(status=429, body='{"error": {"message": "slow down"}}'),
    Said(status=408, body="{}"),
    Said(status=500, body="<html>"),
    Said(body="{", headers={"content-length": "9"}),
    Said(body='{"id": "x", "choi'),
    Said(body="<html>", headers={"content-type": "text/html"}),
    Said(body='{"error": {"message": "busy"}}'),
    Said(body='{"choices": []}'),
]


def test_what_passes_is_tried_again(server: AnswerServer, tmp_path: Path) -> None:
    for number, said in enumerate(PASSING):
        server.bodies.clear()
        server.say = lambda body, number, said=said: said if number < 2 else "4"
        assert ranked(server.url, tmp_path / str(number), ["a"]) == [4] and len(server.bodies) == 3, said


def test_the_server_says_how_long_to_wait(
    server: AnswerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour is more than the client waits."""
    waits: list[float] = []
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", calculated(waits))
    slow = Said(status=429, body="{}", headers={"retry-after": "7"})
    server.say = lambda body, number: "4" if number else slow
    assert ranked(server.url, tmp_path / "7", ["a"]) == [4] and waits == [7]
    server.say = lambda body, number: Said(status=429, body="{}", headers={"retry-after": "3600"})
    with pytest.raises(Fault, match="^ranker.endpoint.requests_per_minute: .* it is too much"):
        ranked(server.url, tmp_path / "3600", ["a"])
    assert len(server.bodies) == 3


def calculated(waits: list[float]) -> Any:
    """The client's own wait is noted, and not waited for."""
    from openai._base_client import BaseClient

    own = BaseClient._calculate_retry_timeout

    def wait_s(*args: Any) -> float:
        waits.append(own(*args))
        return 0.0

    return wait_s


def test_what_does_not_pass_is_one_line(server: AnswerServer, tmp_path: Path) -> None:
    unreadable = "^ranker.endpoint.base_url: .* answered with no completion"
    for number, (said, line, kind) in enumerate(
        (
            (PASSING[0], "^ranker.endpoint.requests_per_minute: .*slow down.*; lower it", Fault),
            (Said(status=500, body=f"key {KEY}"), r"^ranker.endpoint.base_url: .* failed \(500: key \*\*\*", Fault),
            *((said, unreadable, Fault) for said in PASSING[4:]),
            (Said([{"type": "text", "text": "4"}]), unreadable, Fault),
            (Said(status=404, body="{}"), "^ranker.endpoint.model: .* knows no gpt-4.1-mini", UserError),
            (Said(status=405, body="{}"), "^ranker.endpoint.base_url: .* refused ", UserError),
        )
    ):
        server.say = lambda body, number, said=said: said
        with pytest.raises(UserError, match=line) as error:
            ranked(server.url, tmp_path / str(number), ["a"])
        assert "\n" not in str(error.value) and KEY not in str(error.value) and type(error.value) is kind


def test_a_server_that_hangs_holds_no_process_that_is_told_to_stop(
    server: AnswerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "STOPPED_S", 0.0)
    server.say = lambda body, number: Said(hang=True)

    def ask(job: int) -> None:
        client.ask(lambda openai: create(openai, [{"role": "user", "content": "x"}]), lambda response: None)

    def stopped(flying: int) -> bool:
        if flying == 2:
            raise Stopped(signal.SIGTERM)
        return True

    client = Client(judge("points", server.url, "endpoint.concurrent=3").endpoint, "ranker.endpoint")
    with client, pytest.raises(Stopped):
        in_flight(client, range(9), ask, stopped)


def create(openai: Any, chat: Any) -> Any:
    return openai.chat.completions.create(model="m", messages=chat)


def test_requests_keep_the_rate_and_retries_are_counted(
    server: AnswerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that stands still the turns are a second apart, and a retry is a turn."""
    monkeypatch.setattr("src.modeling.endpoint.time.monotonic", lambda: 100.0)
    server.say = lambda body, number: PASSING[0] if number == 0 else "4"
    for word, waits in (("60.0", [0, 1, 2]), ("null", [0, 0])):
        client = Client(judge("points", server.url, f"endpoint.requests_per_minute={word}").endpoint, "ranker.endpoint")
        waited: list[float] = []
        monkeypatch.setattr(client.stop, "wait", waited.append)
        for _ in range(2):
            client.ask(lambda openai: create(openai, [{"role": "user", "content": "x"}]), lambda response: None)
        assert waited == waits


def test_useless_replies_end_it_once_the_limit_is_certain_to_be_passed(
    server: AnswerServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """11 of 50 are more than 0.2, and known before all are paid for. 19 of 100 are not: one that is read is hope."""
    one = "endpoint.concurrent=1"
    server.say = lambda body, number: "As an AI" if number else "4"
    with pytest.raises(UserError, match=r"^ranker.malformed_share_limit: 11 of 50 .* 'As an AI'; mend ranker.verdict"):
        ranked(server.url, tmp_path / "few", numbered(50), one)
    assert len(server.bodies) == 12
    server.bodies.clear()
    server.say = lambda body, number: "?" if number < 19 else "4"
    ranked(server.url, tmp_path / "hope", numbered(100), one)
    assert len(server.bodies) == 100 and "19 of 100 replies are not a verdict" in capsys.readouterr().err
    server.bodies.clear()
    server.say = lambda body, number: "?"
    for _ in range(2):
        with pytest.raises(UserError, match="none of the first 20 replies of"):
            ranked(server.url, tmp_path / "none", numbered(100), "endpoint.concurrent=64")
        assert len(server.bodies) == 20, "replies are kept, also those that are no verdict"
    assert ranked(server.url, tmp_path / "any", ["a"], "malformed_share_limit=1.0") == [3.5]


def test_a_server_without_a_key_is_asked_and_one_that_is_not_there_named(
    server: AnswerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line end around a key is no harm; a character that cannot be sent is refused unseen."""
    server.say = lambda body, number: "4"
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\r\n")
    ranked(server.url, tmp_path / "key", ["a"])
    for inner in ("\n", "\r", "é"):
        monkeypatch.setenv("OPENAI_API_KEY", f"sk{inner}x")
        with pytest.raises(UserError, match="^OPENAI_API_KEY: holds a character that no key has; copy it again$"):
            ranked(server.url, tmp_path / "odd", ["a"])
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    ranked("null", tmp_path / "none", ["a"])
    assert server.keys == {f"Bearer {KEY}", "Bearer none"}
    server.server_close()
    host = f"127.0.0.1:{server.server_port}"
    with pytest.raises(Fault, match=rf"^ranker\.endpoint\.base_url: {host} cannot be reached"):
        ranked(server.url, tmp_path / "away", ["a"], "endpoint.retries=0")
