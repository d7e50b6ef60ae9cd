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
from src.generation.stage import Dealing, summary
from src.kernel.config import UserError
from src.kernel.rows import Row
from src.modeling.policy import load_tokenizer, stop_ids

PENALTIES: dict[str, Any] = {"top_k": 5, "presence_penalty": 1.5, "frequency_penalty": 0.5}
Say = Callable[..., dict[str, Row]]


@pytest.fixture(params=["llama", "mistral", "gemma2"])
def policy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a policy of each architecture, of which thirty ids end an answer: some end early and leave the batch."""
    folder = shutil.copytree(request.getfixturevalue(request.param), tmp_path / "policy")
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["eos_token_id"] = [settings["eos_token_id"], *range(300, 329)]
    (folder / "generation_config.json").write_text(json.dumps(settings))
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

    Whatever K, the other prompts and the number of rows. A uniform within rounding of a boundary may fall to either
    side; penalties are of the answer's tokens, not of the prompt's.
    """
    model = AutoModelForCausalLM.from_pretrained(policy, attn_implementation="eager").eval()
    short, shaped = dataclasses.replace(CODE, max_new_tokens=20), PenalisedSampling(**vars(CODE) | PENALTIES)
    for batch, questions, sampling in (
        (4, QUESTIONS, dataclasses.replace(short, K=2)),
        (20, [*QUESTIONS[3:0:-1], "one more " * 30], dataclasses.replace(short, K=5)),
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


@pytest.mark.parametrize("policy", ["llama"], indirect=True)
def test_an_answer_ends_in_eos_exactly_where_one_was_sampled(say: Say, policy: Path) -> None:
    ends, tokenizer = stop_ids(policy), load_tokenizer(policy)
    rows = say(sampling=dataclasses.replace(CODE, K=8, temperature=1.0, top_p=1.0)).values()
    answers = [answer for row in rows for answer in row["responses"]]
    assert len(ends) == 30 and {answer["finish_reason"] for answer in answers} == {"stop", "length"}
    for answer in answers:
        ids, stopped = answer["token_ids"], answer["finish_reason"] == "stop"
        assert [i for i, token in enumerate(ids) if token in ends] == ([len(ids) - 1] if stopped else [])
        assert stopped or len(ids) == 10
        assert answer["text"] == tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True)
        assert "<|im_end|>" not in answer["text"]


@pytest.mark.parametrize("policy", ["llama"], indirect=True)
def test_overlong_prompts_are_left_out_and_counted(say: Say, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = {question: len(row["prompt_token_ids"]) for question, row in say().items()}
    limit = sorted(lengths.values())[-2]  # one prompt is longer
    kept = say(sampling=dataclasses.replace(CODE, max_prompt_tokens=limit))
    assert list(kept) == [question for question in QUESTIONS if lengths[question] <= limit]
    assert "1 of 6 prompts are over max_prompt_tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match="raise max_prompt_tokens"):
        say(sampling=dataclasses.replace(CODE, max_prompt_tokens=1))


def test_metrics_say_how_many_answers_there_are_how_long_and_how_different() -> None:
    def answer(text: str, tokens: int, reason: str) -> dict[str, Any]:
        return {"text": text, "token_ids": [1] * tokens, "finish_reason": reason}

    same = {"responses": [answer("a", 1, "stop"), answer("a", 2, "stop"), answer(" ", 9, "length")]}
    other = {"responses": [answer("a", 4, "stop"), answer("b", 4, "stop"), answer("c", 4, "length")]}
    assert summary([same, other]) == {
        **{"prompts": 2, "answers": 6, "tokens": 4, "most_tokens": 9, "finished": 4 / 6, "empty": 1 / 6},
        **{"distinct": 5 / 6, "looping": 1 / 6, "alike": 0, "commonest": 1},
    }
