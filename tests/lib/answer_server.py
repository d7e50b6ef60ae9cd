"""A small OpenAI-compatible server on loopback that says what a test tells it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from unittest import mock

from hydra import compose, initialize_config_dir
from tiny_run import ROOT

KEY = "sk-not-to-be-seen"


class Said(NamedTuple):
    """A completion, or with a `body` whatever that is."""

    text: Any = ""
    finish: str | None = "stop"
    top: dict[str, float] | None = None
    """Alternatives of the only token, sent where log-probabilities are asked for."""
    status: int = 200
    body: str | None = None
    headers: dict[str, str] = {}
    hang: bool = False


Script = Callable[[dict[str, Any], int], str | Said]
"""Answers the body of request number 0, 1, ...; a str is a text."""


class AnswerServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.say: Script = lambda body, number: f"answer {number}"
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.lock, self.over = threading.Lock(), threading.Event()

    def handle_error(self, *_: object) -> None:
        """A client that was killed, or has given up, is no error of the server."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def texts(self) -> list[str]:
        return [text_of(body) for body in self.bodies]


class _Handler(BaseHTTPRequestHandler):
    server: AnswerServer

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
            self.server.keys.add(self.headers["authorization"])
        said = self.server.say(body, number)
        said = Said(said) if isinstance(said, str) else said
        if said.hang:
            self.server.over.wait(600)
        if said.body is None:
            said = said._replace(body=json.dumps(_completion(said, body)))
        self._send(said)

    def _send(self, said: Said) -> None:
        text = (said.body or "").encode()
        self.send_response(said.status)
        headers = {"content-type": "application/json", "content-length": str(len(text))} | said.headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)


def _completion(said: Said, body: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": said.text}
    choice: dict[str, Any] = {"index": 0, "finish_reason": said.finish, "message": message}
    if body.get("logprobs") and said.top:
        top = [{"token": token, "logprob": p} for token, p in said.top.items()]
        choice["logprobs"] = {"content": [{"token": said.text, "logprob": 0.0, "top_logprobs": top}]}
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    fixed = {"id": "x", "object": "chat.completion", "created": 0}
    return fixed | {"model": body["model"], "choices": [choice], "usage": usage}


def text_of(body: dict[str, Any]) -> str:
    """Return the last message of a request."""
    return body["messages"][-1]["content"]


@contextmanager
def answering() -> Iterator[AnswerServer]:
    """Run a server in the environment that leads to it, with a client that tries again at once."""
    environment = mock.patch.dict(os.environ, {"OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"})
    at_once = mock.patch("openai._base_client.INITIAL_RETRY_DELAY", 0.0)
    with environment, at_once, AnswerServer() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()


IMPATIENT = ("endpoint.retries=2", "endpoint.timeout_s=60.0")


def from_group(group: str, name: str, *overrides: str) -> Any:
    """Return the composed conf/<group>/<name>.yaml."""
    with initialize_config_dir(str(ROOT / "conf" / group), version_base="1.3"):
        return compose(name, list(overrides))
