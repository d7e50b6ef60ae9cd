"""Servers that always end: scripted ones in a thread, and, for `make test-all`, real ones in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from unittest import mock
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

START_S, END_S = 300.0, 10.0
LOCAL = build_opener(ProxyHandler({}))
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that spin while they wait make a request take ten times as long beside any other busy process."""


@contextmanager
def in_thread(server: Any, key: str) -> Iterator[Any]:
    """Run a scripted server in the environment that leads to it; its `over` ends answers that hang."""
    with mock.patch.dict(os.environ, {"OPENAI_API_KEY": key, "NO_PROXY": "127.0.0.1"}), server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


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
        how: dict[str, Any] = {"env": os.environ | QUIET | (environment or {}), "start_new_session": True}
        with subprocess.Popen(words, stdout=log, stderr=log, **how) as process:
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
