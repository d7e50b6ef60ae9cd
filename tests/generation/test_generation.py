"""Sampling: the seeds, the end of an answer, and what an answer depends on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_generation import CODE, QUESTIONS, engine, generated, naive_token
from transformers import AutoModelForCausalLM

from src.generation.engine import PenalisedSampling
from src.generation.sampling import seeded_uniforms
from src.generation.stage import Dealing
from src.kernel.rows import Row
from src.modeling.policy import load_tokenizer, stop_ids

PENALTIES: dict[str, Any] = {"top_k": 5, "presence_penalty": 1.5, "frequency_penalty": 0.5}
Say = Callable[..., dict[str, Row]]


@pytest.fixture(params=["llama", "mistral", "gemma2"])
def policy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a policy of each architecture, of which thirty ids end an answer: some end early and leave the batch.

    The soft caps of Gemma 2 are so low that they matter.
    """
    folder = shutil.copytree(request.getfixturevalue(request.param), tmp_path / "policy")
    ends = {"eos_token_id": [*stop_ids(folder), *range(300, 329)]}
    caps = {"attn_logit_softcapping": 0.1, "final_logit_softcapping": 3.0} if request.param == "gemma2" else {}
    for name, changes in (("generation_config.json", ends), ("config.json", caps)):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))
    return folder


@pytest.fixture
def say(policy: Path, tmp_path: Path) -> Say:
    """Run the stage in a fresh folder; return the row of each question."""

    def run(questions: Sequence[str] = QUESTIONS, batch: int = 4, dtype: str = "float32", **how: Any) -> dict[str, Row]:
        place = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        rows = generated(engine(batch, dtype), policy, place, questions, **how)
        return {row["messages"][0]["content"]: row for row in rows}

    return run


def test_every_token_is_the_naive_draw_from_the_plain_model_in_any_company(say: Say, policy: Path) -> None:
    """Slots, sliding windows, soft-caps and rows that change hands change nothing: step t uses the t-th uniform.

    Whatever K, the other prompts and the number of rows; one prompt is wider than a block. A uniform within rounding
    of a boundary may fall to either side; penalties are of the answer's tokens, not of the prompt's. EOS ends an answer
    exactly where it was sampled.
    """
    model = AutoModelForCausalLM.from_pretrained(policy, attn_implementation="eager").eval()
    ends, tokenizer = stop_ids(policy), load_tokenizer(policy)
    reasons = set()
    short, shaped = dataclasses.replace(CODE, max_new_tokens=20), PenalisedSampling(**vars(CODE) | PENALTIES)
    for batch, questions, sampling in (
        (4, QUESTIONS, dataclasses.replace(short, K=2)),
        (20, [*QUESTIONS[3:0:-1], "one more " * 240], dataclasses.replace(short, K=5, max_prompt_tokens=2000)),
        (4, QUESTIONS[:3], shaped),
        (4, QUESTIONS[:3], dataclasses.replace(shaped, temperature=0.0)),
    ):
        for row in say(questions, sampling=sampling, batch=batch).values():
            prompt = row["prompt_token_ids"]
            for answer in row["responses"]:
                made, uniforms = answer["token_ids"], seeded_uniforms(answer["seed"], 20).tolist()
                with torch.no_grad():
                    logits = model(torch.tensor([prompt + made])).logits[0, len(prompt) - 1 : -1]
                for t, (z, u) in enumerate(zip(logits, uniforms, strict=False)):
                    near = (naive_token(z.tolist(), sampling, u + d, made[:t]) for d in (0, 1e-4, -1e-4))
                    assert made[t] in near, (batch, t)
                stopped = answer["finish_reason"] == "stop"
                assert [i for i, token in enumerate(made) if token in ends] == ([len(made) - 1] if stopped else [])
                assert stopped or len(made) == sampling.max_new_tokens
                assert answer["text"] == tokenizer.decode(made[:-1] if stopped else made, skip_special_tokens=True)
                reasons.add(answer["finish_reason"])
    assert reasons == {"stop", "length"}


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_answer_is_to_the_bit_the_same_in_any_company(dtype: str, say: Say) -> None:
    """Whatever K, the other prompts, one of which is wider than a block, the number of rows, threads and workers."""
    long = dataclasses.replace(CODE, K=5, max_new_tokens=150, max_prompt_tokens=2000)
    expected = say(dtype=dtype, sampling=long, batch=64)

    def same(questions: Sequence[str] = QUESTIONS, K: int = 5, **how: Any) -> bool:
        made = say(questions, dtype=dtype, sampling=dataclasses.replace(long, K=K), **how)
        return all(made[q]["responses"] == expected[q]["responses"][:K] for q in questions if q in expected)

    assert same(K=3, batch=1)
    assert same([*QUESTIONS[::-1], "one more " * 240, "and more"], batch=20)
    assert same(QUESTIONS[2:4], K=2, batch=16)
    assert same(dealing=Dealing(workers=2, save_seconds=0.01))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - threads if threads < 3 else 1)
        assert same(batch=30)
    finally:
        torch.set_num_threads(threads)
