"""Questions, the stage that asks them, and the next token in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.generation.engine import Sampling
from src.generation.stage import Dealing, Generate
from src.generation.transformers_engine import TransformersEngine
from src.kernel.rows import PROMPTS, RESPONSES, Row, prompt_id, read_rows, write_rows

QUESTIONS = ("hi", "what is it", "None", "and with his words that they had by this have from or one", "ok?", "be it so")
THREE = ("hi", "what is it", "ok?")
CODE = Sampling(K=3, temperature=0.7, top_p=0.9, max_new_tokens=10, max_prompt_tokens=200)
ALONE = Dealing(workers=1, save_seconds=1000.0)


def write_prompts(folder: Path, questions: Sequence[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    chats = [[{"role": "user", "content": question}] for question in questions]
    rows = [{"prompt_id": prompt_id(c), "messages": c, "source": "test", "checks": "[]"} for c in chats]
    write_rows(folder, rows, PROMPTS)
    return folder


def engine(batch_answers: int = 4, dtype: Any = "float32") -> TransformersEngine:
    return TransformersEngine(dtype=dtype, batch_answers=batch_answers, device="cpu")


def generated(
    asked: Any, policy: Path, place: Path, questions: Sequence[str] = THREE, sampling: Sampling = CODE, **more: Any
) -> list[Row]:
    """Return the rows that the stage makes of the questions; what it saved stays in place/out."""
    (out := place / "out").mkdir(parents=True, exist_ok=True)
    stage = Generate(**{"sampling": sampling, "engine": asked, "seed": 0, "dealing": ALONE} | more)
    stage(write_prompts(place / "prompts", questions), policy, out=out)
    return read_rows(out, RESPONSES)


def naive_token(logits: Sequence[float], sampling: Sampling, uniform: float, answer: Sequence[int] = ()) -> int:
    """Draw the next token, in words: penalties, temperature, top_k, top_p, and then a walk to the uniform.

    Tokens are walked likeliest first; without a nucleus any order serves: theirs.
    """
    top_p = sampling.top_p
    z = [float(logit) for logit in logits]
    for token in set(answer):
        z[token] -= sampling.frequency_penalty * list(answer).count(token) + sampling.presence_penalty
    if sampling.temperature == 0:
        return int(np.argmax(z))
    z = [logit / sampling.temperature for logit in z]
    if sampling.top_k is not None:
        kth = sorted(z, reverse=True)[: sampling.top_k][-1]
        z = [logit if logit >= kth else -np.inf for logit in z]
    weights = np.exp(np.array(z) - max(z))
    weights /= weights.sum()
    nucleus, mass = list[int](), 0.0
    for token in sorted(range(len(z)), key=lambda v: -weights[v] if top_p < 1 else v):
        if top_p < 1 and mass >= top_p:
            break
        nucleus.append(token)
        mass += weights[token]
    walked = 0.0
    for token in nucleus:
        walked += weights[token]
        if walked > uniform * mass:
            return token
    return nucleus[-1]
