"""Servers that should answer or judge and do not, and benchmarks' files of questions."""

from __future__ import annotations

import socket

from answer_server import Said, Script, answering
from bad_inputs import Given, Setting

ASKED = "data.answers.mine.endpoint"


def impatient(key: str, url: str, timeout_s: float = 120) -> list[str]:
    """Words for an endpoint that one thread asks, and once more at once."""
    said = {"base_url": url, "concurrent": 1, "retries": 1, "timeout_s": timeout_s}
    return [f"{key}.{name}={value}" for name, value in said.items()]


def environment(key: str | None, url: str | None = None) -> Given:
    def given(setting: Setting) -> None:
        for name, value in {"OPENAI_API_KEY": key, "OPENAI_BASE_URL": url}.items():
            setting.patch.delenv(name, raising=False)
            if value is not None:
                setting.patch.setenv(name, value)

    return given


def asks(script: Script | Said, key: str = ASKED, timeout_s: float = 30) -> Given:
    """What the key names is asked of a server that does this at every request."""

    def given(setting: Setting) -> list[str]:
        server = setting.stack.enter_context(answering())
        server.say = (lambda body, number: script) if isinstance(script, Said) else script
        return impatient(key, server.url, timeout_s)

    return given


def away(key: str) -> Given:
    """At a port that is taken, and nobody listens there."""

    def given(setting: Setting) -> list[str]:
        environment("sk-x")(setting)
        taken = setting.stack.enter_context(socket.socket())
        taken.bind(("127.0.0.1", 0))
        return impatient(key, f"http://127.0.0.1:{taken.getsockname()[1]}/v1")

    return given


def judge(said: str | Said) -> Given:
    return asks(lambda body, number: said, "ranker.endpoint")


def serves(root: str, name: str = "policy") -> Given:
    """The engine's server names `root` as the checkpoint of its only model, `policy`; `name` is asked for."""

    def given(setting: Setting) -> list[str]:
        server = setting.stack.enter_context(answering())
        server.root = root
        return [*impatient("hardware.engine.endpoint", server.url), f"hardware.engine.endpoint.model={name}"]

    return given


NO_SUCH = '{"error": {"message": "no such model"}}'
SERVERS: dict[str, Given] = {
    "a server that is down": away(ASKED),
    "a server that says nothing": asks(Said(hang=True), timeout_s=0.5),
    "a server that says for good that it is too much": asks(Said(status=429, body='{"error": "slow down"}')),
    "a server that wants an hour's wait": asks(Said(status=429, body="{}", headers={"retry-after": "3600"})),
    "JSON that is cut off": asks(Said(body='{"id": "x", "choi')),
    "a key that is refused": asks(Said(status=401, body="{}")),
    "a model that the server does not have": asks(Said(status=404, body=NO_SUCH)),
    "a setting that the server refuses": asks(Said(status=400, body="no such field")),
    "no key": environment(None),
    "an address in the environment that is none": environment("sk-x", "localhost:8000"),
    "an engine whose server has another checkpoint": serves("models/another"),
    "a judge that gives no verdict": judge("It is good."),
    "a judge that fails for good": judge(Said(status=503, body="{}")),
}
ASK = "iter=1 only=it1/outside_mine +answers@data.answers.mine=endpoint"
