"""An engine that repeats a piece of the prompt: a baseline that knows nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from src.generation.engine import Answer, Made, Request, Sampling
from src.kernel.config import Device, Free, config
from src.modeling.policy import load_tokenizer


@config
class Parrot:
    apart: ClassVar[bool] = False
    source: ClassVar[str] = "policy"
    devices_each: ClassVar[int] = 1

    device: Free[Device]

    def open(self, policy: Path, sampling: Sampling) -> Repeating:
        return Repeating(policy, sampling.max_new_tokens)


class Repeating:
    def __init__(self, policy: Path, most: int) -> None:
        self.tokenizer, self.most = load_tokenizer(policy), most

    def answers(self, requests: list[Request]) -> Iterator[Made]:
        """Yield up to `most` tokens of the prompt, from a place that the answer's seed decides."""
        for request in requests:
            for k, seed in request.seeds.items():
                start = random.Random(seed).randrange(len(request.token_ids))
                ids = request.token_ids[start : start + self.most]
                text = self.tokenizer.decode(ids, skip_special_tokens=True)
                yield Made(request.prompt_id, k, Answer(text, ids, "length"))
