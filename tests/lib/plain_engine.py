"""Engines of plain transformers calls: one prompt at a time, no sampling; for what parity and references ask of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from src.config import Device, Free, config
from src.generation.contract import Answer, Made, Request, Sampling, Sequence
from src.generation.parity import plain_greedy, plain_logps
from src.model import Precision, load_policy


@config
class PlainEngine:
    apart: ClassVar[bool] = True
    source: ClassVar[str] = "policy"
    devices_each: ClassVar[int] = 1

    dtype: Precision
    device: Free[Device]
    dies_after: Free[int] = 1_000_000
    """Sequences measured until its process dies."""
    other_policy: Free[str | None] = None
    """Whose weights it really has: a wrong engine."""
    seen: Free[str | None] = None
    """A file that gets the id of each process it is opened in."""

    def open(self, policy: Path, sampling: Sampling) -> _Opened:
        return _Opened(self, policy, sampling.max_new_tokens)

    def measure(self, policy: Path, longest: int) -> _Opened:
        return _Opened(self, policy, 0)


@config
class HerePlainEngine(PlainEngine):
    apart: ClassVar[bool] = False


@config
class MuteEngine:
    """Samples, and cannot tell log-probabilities."""

    apart: ClassVar[bool] = False
    source: ClassVar[str] = "policy"
    devices_each: ClassVar[int] = 1

    dtype: Precision
    device: Free[Device]

    def open(self, policy: Path, sampling: Sampling) -> _Opened:
        return _Opened(PlainEngine(dtype=self.dtype, device=self.device), policy, sampling.max_new_tokens)


class _Opened:
    def __init__(self, engine: PlainEngine, policy: Path, most: int) -> None:
        self.left, self.most = engine.dies_after, most
        self.model: Any = load_policy(Path(engine.other_policy or policy), engine.dtype, engine.device, "eager")
        if engine.seen:
            with Path(engine.seen).open("a") as file:
                file.write(f"{os.getpid()}\n")

    def answers(self, requests: list[Request]) -> Iterator[Made]:
        for request in requests:
            ids = plain_greedy(self.model, request.token_ids, self.most)
            yield Made(request.prompt_id, 0, Answer("", ids, "length"))

    def logps(self, sequences: list[Sequence]) -> list[list[float]]:
        self.left -= len(sequences)
        if self.left < 0:
            os._exit(7)
        return [plain_logps(self.model, sequence) for sequence in sequences]
