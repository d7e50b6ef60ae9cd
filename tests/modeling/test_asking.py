"""The judges against a small HTTP server on loopback: nothing is paid twice, also when a ranking is stopped."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pytest
from judge_server import Server, Step, await_cells, between, judge, longer_wins, numbered, row, serving, terms
from places import PYTHONPATH

from src.cells import Cells
from src.config import UserError, fingerprint
from src.ranking import asking
from src.ranking.stage import Rank


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


PATIENT = "endpoint.timeout_s=60.0"
REFUSAL = Step(status=400, body='{"error": {"message": "no field top_logprobs"}}')


def test_a_hopeless_judge_is_asked_20_times(server: Server, tmp_path: Path) -> None:
    """100 malformed verdicts of 500 would be within the limit; a text that is refused costs nothing to ask again."""
    for reply, line, again in (
        ("As an AI", "^ranker.verdict_pattern: none of the first 20 .*'As an AI'", 20),
        (REFUSAL, "^ranker.endpoint: none of the first 20 .*no field top_logprobs", 40),
    ):
        server.bodies.clear()
        server.script = lambda text, _, reply=reply: reply
        ranker, rows, work = judge("points", server.url, PATIENT), [row("q", numbered(500))], tmp_path / str(again)
        for requests in (20, again):
            with pytest.raises(UserError, match=line):
                ranker.rank(rows, (), work)
            assert len(server.bodies) == requests


def test_one_verdict_that_can_be_read_is_hope(server: Server, tmp_path: Path) -> None:
    """19 malformed of 100 are within the limit of 0.2. Where verdicts are known, 26 that are refused end nothing."""
    server.script = lambda text, number: "?" if number < 19 else "4"
    ranker, rows = judge("points", server.url, "endpoint.concurrent=1"), [row("q", numbered(100))]
    ranker.rank(rows, (), tmp_path)
    assert len(server.bodies) == 100
    server.script = lambda text, number: REFUSAL
    more = [row("q", [*numbered(100), *ascii_lowercase])]
    judge("points", server.url, "malformed_share_limit=0.5").rank(more, (), tmp_path)
    assert len(server.bodies) == 126


def test_too_many_malformed_verdicts_are_not_paid_to_the_end(server: Server, tmp_path: Path) -> None:
    """11 of 50 are more than 0.2."""
    server.script = lambda text, number: "As an AI" if number else "4"
    with pytest.raises(UserError, match=r"^ranker.malformed_share_limit: \d+ of 50"):
        judge("points", server.url, PATIENT, "endpoint.concurrent=1").rank([row("q", numbered(50))], (), tmp_path)
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


def test_points_out_of_range_are_read_again_in_another(server: Server, tmp_path: Path) -> None:
    server.script = lambda text, _: between(text, "answer")
    rows = [row("q", ["3", "9"])]
    with pytest.raises(UserError, match="1 of 2 .* '9'; replies are kept: .* without a request"):
        judge("points", server.url).rank(rows, (), tmp_path)
    assert judge("points", server.url, "highest=10.0").rank(rows, (), tmp_path)[0]["scores"] == [3, 9]
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
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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


def test_copies_of_an_answer_bear_its_malformed_verdict_but_do_not_multiply_it(server: Server, tmp_path: Path) -> None:
    """Two verdicts on the texts bb and a, whichever of the three copies; both are malformed, so is each answer."""
    server.script = lambda text, _: "?"
    ranker = judge("pairwise", server.url, "malformed_share_limit=1.0")
    found = terms(ranker.rank([row("q", ["bb", "a", "bb", "bb"])], (), tmp_path)[0])
    assert found["malformed"] == [1, 1, 1, 1]
    totals = {name: sum(values) for name, values in found.items() if name != "malformed"}
    assert totals == {"malformed_verdicts": 2, "judge_input_tokens": 200, "judge_output_tokens": 4}
    assert found["malformed_verdicts"][1] == 1, "half of each"


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


def test_an_answer_of_two_prompts_is_judged_for_each(server: Server, tmp_path: Path) -> None:
    server.script = lambda text, _: "2" if between(text, "request") == "p" else "3"
    found = judge("points", server.url).rank([row("p", ["a", "a"]), row("q", ["a"])], (), tmp_path)
    assert [one["scores"] for one in found] == [[2, 2], [3]]
    assert len(server.bodies) == 2


def test_what_is_in_flight_when_another_request_fails_is_kept(server: Server, tmp_path: Path) -> None:
    """It is paid for."""
    together = threading.Barrier(3)

    def script(text: str, number: int) -> str | Step:
        together.wait(60)
        return Step(status=404, body="{}") if "gone" in text else "4"

    server.script = script
    rows = [row("q", ["a", "b", "gone"])]
    ranker = judge("points", server.url, PATIENT, "endpoint.concurrent=3")
    with pytest.raises(UserError, match="knows no"):
        ranker.rank(rows, (), tmp_path)
    server.script = lambda text, _: "5"
    assert ranker.rank(rows, (), tmp_path)[0]["scores"] == [4, 4, 5]


RANK = """
import signal, sys
from pathlib import Path
from string import ascii_lowercase
from judge_server import judge, numbered, row
from src.config import Stopped
def stop(number, frame):
    raise Stopped(number)
signal.signal(signal.SIGTERM, stop)
ranker = judge("points", sys.argv[1], "endpoint.concurrent=3", "endpoint.timeout_s=600.0")
try:
    ranker.rank([row("q", numbered(int(sys.argv[3])))], (), Path(sys.argv[2]))
except Stopped as stopped:
    sys.exit(stopped.exit_code)
"""


def ranking_process(server: Server, work: Path, answers: int) -> subprocess.Popen[bytes]:
    """Has a handler of SIGTERM like the command's."""
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-c", RANK, server.url, str(work), str(answers)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.mark.faults
def test_a_signal_amid_a_stream_of_verdicts_loses_none(server: Server, tmp_path: Path) -> None:
    """Of what the server was asked, all is kept but the three in flight; nobody waits for the one that hangs."""
    server.script = lambda text, number: Step(hang=True) if number == 10 else "4"
    with ranking_process(server, tmp_path, 20_000) as process:
        await_cells(tmp_path, 50)
        process.send_signal(signal.SIGTERM)
        process.wait(15)  # the one that hangs takes 20 s
    assert process.returncode == 128 + signal.SIGTERM
    kept = len(Cells(tmp_path / "cells").values)
    assert kept >= 50 and len(server.bodies) - 3 <= kept <= len(server.bodies) < 20_000
