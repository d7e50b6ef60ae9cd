"""Engines of plain transformers calls: one prompt at a time, no sampling; for what parity and references ask of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from src.generation.engine import Answer, Made, Request, Sampling, Sequence
from src.generation.parity import plain_greedy, plain_logps
from src.kernel.config import Device, Free, config
from src.modeling.policy import Precision, load_policy


@config
class MuteEngine:
    """Samples, and cannot tell log-probabilities."""

    apart: ClassVar[bool] = False
    source: ClassVar[str] = "policy"
    devices_each: ClassVar[int] = 1

    dtype: Precision
    device: Free[Device]
    other_policy: Free[str | None] = None
    """Whose weights it really has: a wrong engine."""

    def open(self, policy: Path, sampling: Sampling) -> _Opened:
        return _Opened(self, policy, sampling.max_new_tokens)


@config
class HerePlainEngine(MuteEngine):
    def measure(self, policy: Path, longest: int) -> _Opened:
        return _Opened(self, policy, 0)


class _Opened:
    def __init__(self, engine: MuteEngine, policy: Path, most: int) -> None:
        self.most = most
        self.model: Any = load_policy(Path(engine.other_policy or policy), engine.dtype, engine.device, "eager")

    def answers(self, requests: list[Request]) -> Iterator[Made]:
        for request in requests:
            ids = plain_greedy(self.model, request.token_ids, self.most)
            yield Made(request.prompt_id, 0, Answer("", ids, "length"))

    def logps(self, sequences: list[Sequence]) -> list[list[float]]:
        return [plain_logps(self.model, sequence) for sequence in sequences]
