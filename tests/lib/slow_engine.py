"""An engine for tests of recovery: gives some answers and waits; importable from a process of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from src.generation.engine import Answering, Engine, Keep, Request, Sampling
from src.kernel.config import Device, Free, config

LIMIT_S = 120.0
"""A wait that nobody ends fails."""


def wait_until(condition: Callable[[], Any], message: str = "waited in vain") -> None:
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until, message
        time.sleep(0.02)


@config
class SlowEngine(Engine):
    """Gives `first` answers and waits for the file `go`. Notes in `folder` which cells it made, and who waits."""

    device: ClassVar[Device] = "cpu"

    folder: Free[str]
    first: Free[int]

    def open(self, policy: Path, sampling: Sampling) -> Answering:
        return self.answer

    def answer(self, requests: list[Request], keep: Keep) -> None:
        here = Path(self.folder)
        for number, request in enumerate(requests):
            if number == self.first:
                (here / f"waits-{os.getpid()}").touch()
                wait_until((here / "go").exists)
            with (here / "made").open("a") as file:
                file.write(f"{request.cell}\n")
            ids = [request.seed % 300 + 2, 3]
            keep(request, {"text": f"answer {request.seed}", "token_ids": ids, "finish_reason": "length"})


def made_once(folder: Path) -> list[str]:
    """Return the cells that were made, in their order. None was made twice."""
    made = (folder / "made").read_text().splitlines() if (folder / "made").exists() else []
    assert len(set(made)) == len(made), "a cell was made twice"
    return made
