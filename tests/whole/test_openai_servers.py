"""The openai engine against a real server: vLLM on this CPU."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import pytest
from answer_server import engine
from tiny_generation import THREE, generated
from vllm_results import STOPS, build, plain_greedy

from src.generation.engine import Sampling
from src.kernel.config import UserError
from src.modeling.policy import load_tokenizer, render

START_S, END_S = 300.0, 10.0
LOCAL = build_opener(ProxyHandler({}))
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that spin while they wait make a request take ten times as long beside any other busy process."""
CONTEXT = 256

pytestmark = [pytest.mark.full, pytest.mark.timeout(2 * START_S)]


@contextmanager
def start(words: list[str], environment: dict[str, str] | None = None) -> Iterator[str]:
    """Yield the URL of a server whose command is `words`; `{port}` in them is a free port.

    Waits until it says that it is in good health, for as long as its process lives and no longer than START_S. In the
    end its whole group goes: a server that still starts may swallow SIGTERM, and one that is killed leaves workers.
    """
    with socket.socket() as free, TemporaryFile() as log:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # `free` keeps it, and a server may listen there all the same
        words = [word.replace("{port}", str(port)) for word in words]
        options: dict[str, Any] = {"env": os.environ | QUIET | (environment or {}), "start_new_session": True}
        with subprocess.Popen(words, stdout=log, stderr=log, **options) as process:
            try:
                _await_health(process, f"http://127.0.0.1:{port}/health", Path(f"/proc/self/fd/{log.fileno()}"))
                yield f"http://127.0.0.1:{port}"
            finally:
                for number in (signal.SIGTERM, signal.SIGKILL):
                    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                        os.killpg(process.pid, number)
                        process.wait(END_S)


def _await_health(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        with suppress(OSError, HTTPError), LOCAL.open(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.25)
    raise AssertionError(f"no server after {START_S} s, exit code {process.poll()}: {log.read_text()[-3000:]}")


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def answers_of(server: Any, policy: Path, place: Path, **sampling: Any) -> list[dict[str, Any]]:
    """Return all answers to the questions."""
    defaults = {"K": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 24, "max_prompt_tokens": 200}
    rows = generated(server, policy, place, sampling=Sampling(**defaults | sampling))
    return [answer for row in rows for answer in row["responses"]]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
def test_vllm_gives_back_the_ids_that_it_sampled(llama: Path, tmp_path: Path) -> None:
    """Greedily those of transformers; by seed the same ones again, others for other seeds; EOS where it was drawn.

    It says which checkpoint it serves, and what is too long.
    """
    folder = build(tmp_path / "0123456789abcdef0123", "mistral")
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--host", "127.0.0.1"]
    words += ["--port", "{port}", "--served-model-name", "policy", "--dtype", "float32", "--enforce-eager"]
    words += ["--max-model-len", str(CONTEXT)]
    # Threads bound to cores wait for each other's turn where other tests use these cores.
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    with start(words, environment) as url:
        server = engine(f"{url}/v1", "ask=tokens", "endpoint.timeout_s=120.0")
        greedy = answers_of(server, folder, tmp_path / "greedy", K=1, temperature=0.0)
        first, again = (answers_of(server, folder, tmp_path / name, max_new_tokens=100) for name in ("first", "again"))
        with pytest.raises(UserError, match="hardware.engine.source: .*0123456789abcdef0123, .*llama"):
            answers_of(server, llama, tmp_path / "other")
        with pytest.raises(UserError, match=r"prompt \w{16}, answer \d: .*400: .*"):
            answers_of(server, folder, tmp_path / "long", max_new_tokens=CONTEXT + 1)
    tokenizer = load_tokenizer(folder)
    prompts = [render(tokenizer, [{"role": "user", "content": question}]) for question in THREE]
    assert [answer["token_ids"] for answer in greedy] == [plain_greedy(folder, ids, 24)[0] for ids in prompts]
    assert first == again and len({tuple(answer["token_ids"]) for answer in first}) == len(first) == 6
    for answer in first:
        ids, ended = answer["token_ids"], answer["finish_reason"] == "stop"
        assert [place for place, token in enumerate(ids) if token in STOPS] == ([len(ids) - 1] if ended else [])
        assert ended or len(ids) == 100
        assert answer["text"] == tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
