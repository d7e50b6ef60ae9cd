"""A real browser: headless Chromium, spoken to through a pipe, for what pages look like and what they complain of."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE_S = 60
HIGH = 10
"""The browser expects the ends of its pipes as 3 and 4; ours must not be in the way."""
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
)


def program() -> str | None:
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Page:
    """A tab of its own, of a width and a theme; `errors` are its uncaught errors, console errors and failed loads."""

    def __init__(self, speak: _Pipe, path: Path, width: int, dark: bool) -> None:
        self.speak, self.errors, self.width = speak, list[str](), width
        target = speak("Target.createTarget", url="about:blank")["targetId"]
        self.session = speak("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self("Emulation.setEmulatedMedia", features=scheme)
        self._resize(900)
        self("Page.navigate", url=path.resolve().as_uri())
        speak.await_event("Page.loadEventFired", self.session)
        own = [event for event in speak.events if event.get("sessionId") == self.session]
        self.errors = [text for event in own if (text := _error(event))]
        asked = [event["params"]["request"] for event in own if event.get("method") == "Network.requestWillBeSent"]
        self.requests = [request["url"] for request in asked]

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        return self.speak(method, self.session, **params)

    def evaluate(self, expression: str) -> Any:
        told = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def screenshot(self, path: Path, height: int | None = None, scale: float = 1) -> None:
        """The first `height` pixels of the page; all of it where that is not given."""
        whole = int(self.evaluate("Math.ceil(document.documentElement.getBoundingClientRect().height)"))
        self._resize(min(height or whole, whole), scale)
        told = self("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(told["data"]))

    def _resize(self, height: int, scale: float = 1) -> None:
        self("Emulation.setDeviceMetricsOverride", width=self.width, height=height, deviceScaleFactor=scale,
             mobile=self.width < 600)  # fmt: skip


class Browser:
    def __init__(self, speak: _Pipe) -> None:
        self.speak = speak

    def open(self, path: Path, width: int = 1280, dark: bool = False) -> Page:
        return Page(self.speak, path, width, dark)


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium as long as the body runs; `program()` must know one."""
    found = program()
    assert found
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, HIGH) for end in (theirs_in, theirs_out)]
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}', "bash", found, *FLAGS, f"--user-data-dir={profile}"],
            **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL), pass_fds=ends,
        )  # fmt: skip
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        pipe = _Pipe(ours_in, ours_out)
        try:
            yield Browser(pipe)
        finally:
            with suppress(OSError):
                pipe("Browser.close")
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(ours_in)
            os.close(ours_out)


class _Pipe:
    """Messages of the DevTools protocol, each ended by a zero byte."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write, self.number, self.rest = read, write, 0, b""
        self.events: list[dict[str, Any]] = []

    def __call__(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.write, data) :]
        while (answer := self._next()).get("id") != self.number:
            self.events.append(answer)
        if "error" in answer:
            raise OSError(f"{method}: {answer['error']}")
        return answer["result"]

    def await_event(self, method: str, session: str) -> None:
        while not any(e.get("method") == method and e.get("sessionId") == session for e in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], PATIENCE_S)
            data = os.read(self.read, 1 << 20) if ready else b""
            if not data:
                raise OSError("the browser says nothing")
            self.rest += data
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)


def _error(event: dict[str, Any]) -> str | None:
    method, params = event.get("method"), event.get("params", {})
    if method == "Runtime.exceptionThrown":
        return str(params["exceptionDetails"].get("exception", params["exceptionDetails"]).get("description", "error"))
    if method == "Runtime.consoleAPICalled" and params["type"] == "error":
        return str(params["args"])
    if method == "Log.entryAdded" and params["entry"]["level"] == "error":
        return params["entry"]["text"]
    return None
