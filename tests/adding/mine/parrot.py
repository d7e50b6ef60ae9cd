"""An engine that repeats a piece of the prompt: a baseline that knows nothing."""

from __future__ import annotations

import random
from pathlib import Path

from src.generation.engine import Answering, Engine, Keep, Request, Sampling
from src.kernel.config import Device, Free, config
from src.modeling.policy import load_tokenizer


@config
class Parrot(Engine):
    device: Free[Device]

    def open(self, policy: Path, sampling: Sampling) -> Answering:
        tokenizer = load_tokenizer(policy)

        def answer(requests: list[Request], keep: Keep) -> None:
            """Give tokens of the prompt, from a place that the answer's seed decides."""
            for request in requests:
                start = random.Random(request.seed).randrange(len(request.token_ids))
                ids = request.token_ids[start : start + sampling.max_new_tokens]
                text = str(tokenizer.decode(ids, skip_special_tokens=True))
                keep(request, {"text": text, "token_ids": ids, "finish_reason": "length"})

        return answer
