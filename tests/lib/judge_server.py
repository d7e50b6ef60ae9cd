"""A small chat-completions server on loopback that does what a test tells it, and the judges that ask it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from servers import in_thread
from tiny_run import ROOT

from src.kernel.cells import CELLS, Cells
from src.kernel.rows import Row

KEY = "sk-not-to-be-seen"


class Step(NamedTuple):
    """What the server does with a request."""

    reply: str = ""
    status: int = 200
    body: str | None = None
    headers: dict[str, str] = {}
    hang: bool = False
    top: dict[str, float] | None = None
    """Alternatives of the only token, when log-probabilities are asked for."""


class Server(ThreadingHTTPServer):
    """Does `script(text, number)` with request number 0, 1, ...; a str is a reply."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: Callable[[str, int], str | Step] = lambda text, number: "A"
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.times: list[float] = []
        self.lock, self.over = threading.Lock(), threading.Event()

    def handle_error(self, *_: object) -> None:
        """A client that was killed, or has given up, is no error of the server."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def texts(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.bodies]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
            self.server.times.append(time.monotonic())
            self.server.keys.add(self.headers["authorization"])
        step = self.server.script(body["messages"][0]["content"], number)
        step = Step(step) if isinstance(step, str) else step
        if step.hang:
            self.server.over.wait(600)
        self._answer(step, json.dumps(completion(step, body)) if step.body is None else step.body)

    def _answer(self, step: Step, text: str) -> None:
        self.send_response(step.status)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(text)),
            **step.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())


def completion(step: Step, body: dict[str, Any]) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    choice["message"] = {"role": "assistant", "content": step.reply}
    if body.get("logprobs") and step.top:
        top = [{"token": token, "logprob": p} for token, p in step.top.items()]
        choice["logprobs"] = {"content": [{"token": step.reply, "logprob": 0.0, "top_logprobs": top}]}
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
    return {"id": "x", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}


def serving() -> AbstractContextManager[Server]:
    """A server that runs, and the environment that leads to it."""
    return in_thread(Server(), KEY)


def judge(kind: str, url: str, *overrides: str) -> Any:
    """The ranker of conf/ranker/llm_judge_<kind>.yaml. It asks again at once, but waits long for a reply."""
    given = [f"endpoint.base_url={url}", "endpoint.backoff_s=0.001", "endpoint.retries=2", "endpoint.timeout_s=60.0"]
    with initialize_config_dir(str(ROOT / "conf" / "ranker"), version_base="1.3"):
        return instantiate(compose(f"llm_judge_{kind}", [*given, *overrides]), _convert_="all")


def row(question: str, answers: list[str]) -> Row:
    chat = [{"role": "user", "content": question}]
    return {"prompt_id": question, "messages": chat, "responses": [{"text": text} for text in answers]}


def numbered(count: int) -> list[str]:
    """As many different answers."""
    return [str(i) for i in range(count)]


def longer_wins(text: str, number: int) -> str:
    """The script of a judge that prefers length."""
    first, second = (between(text, f"answer {letter}") for letter in "AB")
    return "A" if len(first) > len(second) else "B" if len(first) < len(second) else "tie"


def between(text: str, mark: str) -> str:
    found = re.search(rf"^\[{mark} \w{{8}}\]\n(.*?)\n\[end of {mark} ", text, re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def terms(ranking: Row) -> dict[str, list[float]]:
    return {term["name"]: term["values"] for term in ranking["terms"]}


def await_cells(work: Path, count: int) -> None:
    """Wait until the folder WORK of a ranking holds so many."""
    deadline = time.monotonic() + 120
    while len(Cells(work / CELLS).values) < count and time.monotonic() < deadline:
        time.sleep(0.02)
