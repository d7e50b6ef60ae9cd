"""The judges against a real server: `transformers serve` with SmolLM2-135M-Instruct on this machine's CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from judge_server import judge, row, terms
from tiny_run import ROOT

from src.config import UserError

pytestmark = pytest.mark.full

K = 3
ROWS = [
    row("Name a colour.", ["Blue.", "A colour is what light looks like to us.", "blue blue blue"]),
    row("What is 2 + 3?", ["5", "It is 6.", "2 + 3 = 5."]),
]


class Serving(NamedTuple):
    process: subprocess.Popen[bytes]
    url: str
    model: str


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("smollm2")
    with initialize_config_dir(str(ROOT / "conf" / "model"), version_base="1.3"):
        instantiate(compose("smollm2_135m_instruct"))(out=folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("transformers")),
        "serve",
        str(folder),
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    log = (folder / "serve.log").open("wb")
    # Threads that spin while they wait make a request take ten times as long beside any other busy process.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, stdout=log, stderr=log
    ) as process:
        log.close()
        try:
            _await_health(process, f"http://127.0.0.1:{port}/health", folder / "serve.log")
            yield Serving(process, f"http://127.0.0.1:{port}/v1", str(folder))
        finally:
            process.kill()


def _await_health(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            with urlopen(url, timeout=2) as answer:
                assert answer.status == 200
                return
        except (URLError, TimeoutError):
            time.sleep(0.25)
    raise TimeoutError(log.read_text())


def test_a_real_server_judges_and_is_not_needed_again(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SmolLM2 is a poor judge; the contract is what counts: finite values, no request for what is known."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    options = [f"endpoint.model={serving.model}", "endpoint.timeout_s=100.0", "malformed_share_limit=1.0"]
    options += ["endpoint.max_tokens=4", "endpoint.concurrent=2"]
    pairwise, points = (judge(kind, serving.url, *options) for kind in ("pairwise", "points"))
    compared, counted = pairwise.rank(ROWS, (), tmp_path / "a"), points.rank(ROWS, (), tmp_path / "b")
    said = capsys.readouterr().out
    assert "12 requests to make" in said and "6 requests to make" in said and " 0 input" not in said
    for ranking in compared:
        logits = np.array(ranking["logits"])
        assert np.array_equal(np.isnan(logits), np.eye(K, dtype=bool))
        assert set(logits[~np.eye(K, dtype=bool)]) <= {-2.0, 0.0, 2.0}
    assert all(1 <= score <= 6 for ranking in counted for score in ranking["scores"])
    assert all(sum(terms(ranking)["judge_input_tokens"]) > 100 for ranking in [*compared, *counted])
    with pytest.raises(UserError, match="refused: 400: .*pinned"):
        judge("points", serving.url, "endpoint.model=another").rank(ROWS, (), tmp_path / "c")

    serving.process.kill()
    serving.process.wait()
    assert str(pairwise.rank(ROWS, (), tmp_path / "a")) == str(compared)
    assert str(points.rank(ROWS, (), tmp_path / "b")) == str(counted)
    with pytest.raises(UserError, match="cannot be reached"):
        points.rank([row("Another?", ["No."])], (), tmp_path / "b")
