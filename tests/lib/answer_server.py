"""A small server of chats, texts and a list of models on loopback that says what a test tells it, and who asks it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import ThreadingHTTPServer
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from judge_server import KEY, Handler, Server, Step
from servers import in_thread
from tiny_run import ROOT


class Said(NamedTuple):
    """An answer; `ids` are told where they are asked for."""

    text: str | None
    finish: str | None = "stop"
    ids: list[int] | None = None


Script = Callable[[dict[str, Any], int], str | Said | Step]
"""What is done with the body of request number 0, 1, ...; a str is an answer."""


class AnswerServer(Server):
    """Says `root` of its only model `policy`; None: it does not list its models."""

    def __init__(self) -> None:
        ThreadingHTTPServer.__init__(self, ("127.0.0.1", 0), AnswerHandler)
        self.say: Script = lambda body, number: f"answer {number}"
        self.root: str | None = "policy"
        self.bodies, self.keys, self.times = [], set(), []
        self.paths: list[str] = []
        self.lock, self.over = threading.Lock(), threading.Event()

    @property
    def asked(self) -> list[tuple[str, int]]:
        """(text or ids of the prompt, seed) of each request."""
        return [(str(body.get("prompt") or body["messages"][-1]["content"]), body.get("seed")) for body in self.bodies]


class AnswerHandler(Handler):
    server: AnswerServer

    def do_GET(self) -> None:
        if self.server.root is None:
            self._answer(Step(status=404), "{}")
            return
        model = {"id": "policy", "object": "model", "created": 0, "owned_by": "x", "root": self.server.root}
        self._answer(Step(), json.dumps({"object": "list", "data": [model]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
            self.server.paths.append(self.path)
            self.server.times.append(time.monotonic())
            self.server.keys.add(self.headers["authorization"])
        step = self.server.say(body, number)
        if isinstance(step, Step):
            if step.hang:
                self.server.over.wait(600)
            self._answer(step, step.body if step.body is not None else "{}")
            return
        said = Said(step) if isinstance(step, str) else step
        self._answer(Step(), json.dumps(_completion(said, body, self.path)))


def _completion(said: Said, body: dict[str, Any], path: str) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": said.finish}
    chat = path.endswith("/chat/completions")
    choice |= {"message": {"role": "assistant", "content": said.text}} if chat else {"text": said.text}
    if body.get("return_token_ids") and said.ids is not None:
        choice["token_ids"] = said.ids
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    kind = "chat.completion" if chat else "text_completion"
    return {"id": "x", "object": kind, "created": 0, "model": body["model"], "choices": [choice], "usage": usage}


def answering() -> AbstractContextManager[AnswerServer]:
    """A server that runs, and the environment that leads to it."""
    return in_thread(AnswerServer(), KEY)


IMPATIENT = ("endpoint.backoff_s=0.001", "endpoint.retries=2", "endpoint.timeout_s=60.0")


def engine(url: str, *overrides: str) -> Any:
    """The engine of conf/engine/openai.yaml, which waits for nothing."""
    with initialize_config_dir(str(ROOT / "conf" / "engine"), version_base="1.3"):
        words = [f"endpoint.base_url={url}", *IMPATIENT, *overrides]
        return instantiate(compose("openai", words), _convert_="all")
