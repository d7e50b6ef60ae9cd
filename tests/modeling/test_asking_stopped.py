"""The judges against a small HTTP server on loopback: what is finished when a ranking is stopped is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from judge_server import Server, Step, await_cells, judge, numbered, row, serving
from places import PYTHONPATH

from src.cells import Cells
from src.config import Stopped, UserError

pytestmark = pytest.mark.full


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)])
def test_a_signal_ends_it_at_once_and_finished_verdicts_are_kept(
    number: signal.Signals, raised: type[BaseException], server: Server, tmp_path: Path
) -> None:
    """The fourth request never ends; the three before it are not asked again."""

    def script(text: str, count: int) -> str | Step:
        if count < 3:
            return "4"
        threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
        return Step(hang=True)

    def stop(received: int, _: object) -> None:
        raise KeyboardInterrupt if received == signal.SIGINT else Stopped(received)

    server.script = script
    ranker = judge("points", server.url, "endpoint.concurrent=1", "endpoint.timeout_s=900.0")  # longer than a test
    rows = [row("q", list("abcde"))]
    old = signal.signal(number, stop)  # a shell starts what is in its background with SIGINT ignored
    try:
        with pytest.raises(raised):
            ranker.rank(rows, (), tmp_path)
    finally:
        signal.signal(number, old)
    server.script = lambda text, _: "5"
    assert sorted(ranker.rank(rows, (), tmp_path)[0]["scores"]) == [4, 4, 4, 5, 5]
    assert len(server.bodies) == 4 + 2


RANK = """
import signal, sys
from pathlib import Path
from string import ascii_lowercase
from judge_server import judge, numbered, row
from src.config import Stopped
def stop(number, frame):
    raise Stopped(number)
signal.signal(signal.SIGTERM, stop)
ranker = judge("points", sys.argv[1], "endpoint.concurrent=3", "endpoint.timeout_s=18.0")
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


def test_a_killed_process_loses_only_what_was_in_flight(server: Server, tmp_path: Path) -> None:
    """Six verdicts are there and three requests hang: those three are asked again."""
    server.script = lambda text, number: "4" if number < 6 else Step(hang=True)
    with ranking_process(server, tmp_path, 12) as process:
        deadline = time.monotonic() + 60
        while len(server.bodies) < 9 and time.monotonic() < deadline:
            time.sleep(0.05)
        await_cells(tmp_path, 6)
        process.kill()
    server.script = lambda text, _: "4"
    assert judge("points", server.url).rank([row("q", numbered(12))], (), tmp_path)[0]["scores"] == [4] * 12
    assert len(server.bodies) == 12 + 3


def test_a_signal_amid_a_stream_of_verdicts_loses_none(server: Server, tmp_path: Path) -> None:
    """Of what the server was asked, all is kept but the three in flight; nobody waits for the one that hangs."""
    server.script = lambda text, number: Step(hang=True) if number == 10 else "4"
    with ranking_process(server, tmp_path, 20_000) as process:
        await_cells(tmp_path, 50)
        process.send_signal(signal.SIGTERM)
        process.wait(12)  # the client has patience for 18 s
    assert process.returncode == 128 + signal.SIGTERM
    kept = len(Cells(tmp_path / "cells").values)
    assert kept >= 50 and len(server.bodies) - 3 <= kept <= len(server.bodies) < 20_000


def test_what_is_in_flight_when_another_request_fails_is_kept(server: Server, tmp_path: Path) -> None:
    """It is paid for."""

    def script(text: str, number: int) -> str | Step:
        if "gone" in text:
            return Step(status=404, body="{}")
        time.sleep(0.4)
        return "4"

    server.script = script
    rows = [row("q", ["a", "b", "gone"])]
    ranker = judge("points", server.url, "endpoint.concurrent=3")
    with pytest.raises(UserError, match="knows no"):
        ranker.rank(rows, (), tmp_path)
    server.script = lambda text, _: "5"
    assert ranker.rank(rows, (), tmp_path)[0]["scores"] == [4, 4, 5]
