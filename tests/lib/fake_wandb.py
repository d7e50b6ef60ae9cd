"""As much of the wandb module as the mirror uses, with a server that keeps what it is sent and can be killed.

A killed process loses the rows that its library had not sent yet; what the server has, it has for good.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from src.kernel.rows import Row


class Killed(BaseException):
    """SIGKILL."""


class Server:
    """The side of W&B. `rows` of a run are in the order in which they came, with their steps."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[int, Row]]] = {}
        self.opened: list[dict[str, Any]] = []
        self.summaries: dict[str, Row] = {}
        self.ends: list[Any] = []
        """Exit codes, and "preempting" before that of a run that says so."""
        self.artifacts: list[tuple[str, str, Any, list[str]]] = []
        """`made` or `used`, the id of the run, the artifact, its aliases."""
        self.kill_after: int | None = None
        """Rows that are logged before the process is killed; None: it lives."""
        self.in_flight = 0
        """Rows logged last that a kill takes along."""
        self.gone = False
        """True while nobody answers."""


class FakeRun:
    def __init__(self, server: Server, words: dict[str, Any]) -> None:
        self.server, self.id = server, words["id"]
        folder = Path(words["dir"]) / "wandb" / f"run-20260101_000000-{self.id}"
        folder.mkdir(parents=True, exist_ok=True)
        self.settings = SimpleNamespace(sync_dir=str(folder))
        self.sent = server.rows.setdefault(self.id, [])
        self.waiting: list[tuple[int, Row]] = []
        self.summary = server.summaries.setdefault(self.id, {})
        self.starting_step = self.sent[-1][0] + 1 if self.sent else 0

    def log(self, row: Row, step: int, commit: bool) -> None:
        assert commit
        if self.server.kill_after == 0:
            raise Killed
        self.waiting.append((step, row))
        while len(self.waiting) > self.server.in_flight:
            self.sent.append(self.waiting.pop(0))
        if self.server.kill_after is not None:
            self.server.kill_after -= 1

    def define_metric(self, name: str, **how: Any) -> None: ...

    def log_artifact(self, artifact: Any, aliases: list[str], how: str = "made") -> None:
        self.server.artifacts.append((how, self.id, artifact, aliases))

    def use_artifact(self, artifact: Any, aliases: list[str]) -> None:
        self.log_artifact(artifact, aliases, "used")

    def mark_preempting(self) -> None:
        self.server.ends.append("preempting")

    def finish(self, exit_code: int) -> None:
        if self.server.gone:
            raise TimeoutError("Timed out finishing run.")
        self.sent += self.waiting
        self.server.ends.append(exit_code)


@contextmanager
def faked(server: Server) -> Iterator[None]:
    """Everything but opening a run is the real module's."""

    def init(**words: Any) -> FakeRun:
        if server.gone:
            raise OSError("no route to W&B\nat all")
        server.opened.append(words)
        return FakeRun(server, words)

    with mock.patch("wandb.init", init):
        yield
