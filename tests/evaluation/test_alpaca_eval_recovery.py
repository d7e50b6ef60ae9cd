"""Judging that is cut off goes on, and no pair is paid for twice."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from judge_server import Server, Step, serving
from test_alpaca_eval_judging import annotated, judge, longer, made, shown
from tiny_run import ROOT

from src.artifact import WORK, Node
from src.cells import CELLS, Cells
from src.config import UserError, config, fingerprint
from src.evaluation.alpaca_eval.annotate import AlpacaEvalAnnotations
from src.evaluation.alpaca_eval.asking import Judge
from src.store import Store

pytestmark = pytest.mark.full  # the library takes seconds to import


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.script = lambda text, number: longer(server, number)
        yield server


def test_an_error_of_the_server_keeps_what_was_paid(server: Server, tmp_path: Path) -> None:
    def script(text: str, number: int) -> Step:
        return longer(server, number) if number < 3 else Step(status=500, body="<html>")

    server.script = script
    with pytest.raises(UserError, match="benchmark.alpaca_eval.judge.endpoint.base_url: .* failed"):
        annotated(made(tmp_path / "outputs"), server.url, tmp_path / "out", "endpoint.concurrent=1")
    server.script = lambda text, number: longer(server, number)
    before = len(server.bodies)
    rows = annotated(made(tmp_path / "outputs"), server.url, tmp_path / "out")
    assert len(server.bodies) == before + 3 and all(row.preference for row in rows)


def test_a_bad_reply_costs_none_that_is_in_flight(server: Server, tmp_path: Path) -> None:
    """One is no preference while three are on their way: those are kept, and no fifth is asked for."""
    arrived = threading.Barrier(4)

    def script(text: str, number: int) -> Step:
        arrived.wait(60)
        if number == 0:
            return Step("As an AI")
        time.sleep(1)  # until the bad one is surely looked at
        return longer(server, number)

    server.script = script
    folder, out = made(tmp_path / "outputs"), tmp_path / "out"
    with pytest.raises(UserError, match="1 of 6 replies of .* are no preference"):
        annotated(folder, server.url, out, "endpoint.concurrent=4")
    assert len(server.bodies) == 4 and len(Cells(out / WORK / CELLS).values) == 3
    server.script = lambda text, number: longer(server, number)
    annotated(folder, server.url, out)
    assert len(server.bodies) == 4 + 3


KILLED = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from test_alpaca_eval_judging import annotated
annotated(Path({folder!r}), {url!r}, Path({out!r}), "endpoint.concurrent=1")
"""


def test_a_killed_process_loses_no_reply(server: Server, tmp_path: Path) -> None:
    """The fifth request hangs until it is killed; then that one and what comes after it are asked."""

    def script(text: str, number: int) -> Step:
        return Step(hang=True) if number == 4 else longer(server, number)

    server.script = script
    folder, out = made(tmp_path / "outputs"), tmp_path / "out"
    out.mkdir()
    values = {"root": str(ROOT), "tests": str(ROOT / "tests" / "lib"), "folder": str(folder), "url": server.url}
    process = subprocess.Popen([sys.executable, "-c", KILLED.format(**values, out=str(out))])
    deadline = time.monotonic() + 120
    while len(server.bodies) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    while len(Cells(out / WORK / CELLS).values) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    server.over.set()
    first = [shown(body) for body in server.bodies[:4]]
    rows = annotated(folder, server.url, out)
    assert all(row.preference for row in rows) and len(server.bodies) == 5 + 2
    assert not [body for body in server.bodies[5:] if shown(body) in first]


def test_a_pair_is_paid_for_once_whichever_run_and_policy_judges_it(server: Server, tmp_path: Path) -> None:
    """Two artifacts of outputs with four pairs in common, in one store: 6 + 2 requests; another judge is asked anew."""
    store = Store(tmp_path / "store")
    texts = [f"The answer number {i}." for i in range(6)]
    for name, own in {"one": texts, "two": [*texts[:4], "new", "newer"]}.items():
        made(tmp_path / name, own)
    stage = AlpacaEvalAnnotations(judge=judge(server.url), key="k")
    for name, asked in (("one", 6), ("two", 8)):
        node = Node("x/annotations", stage, (Node("x/outputs", _Copy(folder=tmp_path / name)),))
        store.make(node.inputs[0])
        store.make(node)
        assert len(server.bodies) == asked
    assert _cells(store, judge(server.url, "endpoint.concurrent=1")) == _cells(store, judge(server.url))
    for other in ("endpoint.model=m", "endpoint.temperature=null", "top_logprobs=2", "endpoint.seed=1"):
        assert _cells(store, judge(server.url, other)) != _cells(store, judge(server.url))


def _cells(store: Store, by: Judge) -> Path | None:
    stage = AlpacaEvalAnnotations(judge=by, key="k")
    return store.cells(Node("x", stage, (Node("y", _Copy(folder=Path())),)))


@config
class _Copy:
    """A stage that brings a folder."""

    kind: ClassVar[str] = "alpaca_eval_outputs"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False
    folder: Path

    def __call__(self, *inputs: Path, out: Path) -> None:
        for path in self.folder.iterdir():
            (out / path.name).write_bytes(path.read_bytes())


def test_the_limit_and_the_way_it_is_asked_move_no_key() -> None:
    usual = AlpacaEvalAnnotations(judge=judge("http://x/v1"), key="k")
    free = AlpacaEvalAnnotations(judge=judge("http://y/v1", "failed_share_limit=1.0", "endpoint.retries=0"), key="l")
    assert fingerprint(usual) == fingerprint(free) and usual.source_version() == "alpaca-eval 0.6.6"
