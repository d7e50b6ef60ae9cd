"""Sampling: the seeds, the end of an answer, and what an answer depends on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_draw import naive_draw
from tiny_generation import ALONE, CODE, QUESTIONS, ending_often, engine, talker, write_prompts  # noqa: F401
from transformers import AutoModelForCausalLM

from src import records
from src.config import UserError
from src.generation.contract import Sampling
from src.generation.stage import Dealing, Generate, summary
from src.model import load_tokenizer

pytestmark = pytest.mark.full


def stops(policy: Path) -> set[int]:
    ids = json.loads((policy / "generation_config.json").read_text())["eos_token_id"]
    return set(ids if isinstance(ids, list) else [ids])


Say = Callable[..., dict[str, records.Row]]


@pytest.fixture
def say(talker: Path, tmp_path: Path) -> Say:  # noqa: F811
    """Run the stage in fresh folders; the row of each question."""

    def run(
        questions: Sequence[str] = QUESTIONS,
        sampling: Sampling = CODE,
        seed: int = 0,
        policy: Path = talker,
        batch: int = 4,
        dtype: str = "float32",
        dealing: Dealing = ALONE,
    ) -> dict[str, records.Row]:
        here = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        prompts, out = write_prompts(here / "prompts", questions), here / "out"
        out.mkdir()
        stage = Generate(sampling=sampling, engine=engine(batch, dtype), seed=seed, dealing=dealing)
        stage(prompts, policy, out=out)
        rows = records.read_rows(out, records.RESPONSES)
        return {row["messages"][0]["content"]: row for row in rows}

    return run


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_every_token_is_the_naive_draw_from_the_plain_model(
    architecture: str, say: Say, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Slots, sliding windows, soft-caps and rows that change hands change nothing: step t uses the t-th uniform."""
    folder = ending_often(request.getfixturevalue(architecture), tmp_path_factory.mktemp("ending") / "policy")
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    for row in say(policy=folder, sampling=dataclasses.replace(CODE, K=2, max_new_tokens=20)).values():
        prompt = row["prompt_token_ids"]
        for answer in row["responses"]:
            made = answer["token_ids"]
            stream = torch.Generator().manual_seed(answer["seed"])
            uniforms = torch.rand(20, generator=stream, dtype=torch.float64).tolist()
            with torch.no_grad():
                logits = model(torch.tensor([prompt + made])).logits[0, len(prompt) - 1 : -1] / 0.7
            assert made == [naive_draw(z.tolist(), 0.9, u) for z, u in zip(logits, uniforms, strict=False)]


@pytest.mark.parametrize("architecture", ["talker", "mistral", "gemma2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_answer_depends_on_its_cell_alone(
    architecture: str, dtype: str, say: Say, request: pytest.FixtureRequest
) -> None:
    """Bit for bit: whatever K, the other prompts, the number of rows, of workers and of threads."""
    policy = request.getfixturevalue(architecture)
    long = dataclasses.replace(CODE, K=5, max_new_tokens=150)
    expected = say(policy=policy, dtype=dtype, sampling=long, batch=64)

    def same(questions: Sequence[str] = QUESTIONS, K: int = 5, **how: Any) -> bool:
        made = say(questions, policy=policy, dtype=dtype, sampling=dataclasses.replace(long, K=K), **how)
        return all(made[q]["responses"] == expected[q]["responses"][:K] for q in questions if q in expected)

    assert same(K=3, batch=1)
    assert same([*QUESTIONS[::-1], "one more " * 40, "and more"], batch=20)
    assert same(QUESTIONS[2:4], K=2, batch=16)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - threads if threads < 3 else 1)
        assert same(batch=30)
    finally:
        torch.set_num_threads(threads)


def test_rows_keep_the_order_of_the_prompts(say: Say) -> None:
    assert list(say(QUESTIONS[::-1])) == list(QUESTIONS[::-1])


def test_answers_differ_by_seed_prompt_and_number(say: Say) -> None:
    rows = [*say(seed=0).values(), *say(seed=1).values()]
    answers = [answer for row in rows for answer in row["responses"]]
    assert len({answer["seed"] for answer in answers}) == len(answers)
    assert len({tuple(answer["token_ids"]) for answer in answers}) == len(answers)


def test_an_answer_ends_in_eos_exactly_where_one_was_sampled(say: Say, talker: Path) -> None:  # noqa: F811
    ends, tokenizer = stops(talker), load_tokenizer(talker)
    rows = say(sampling=dataclasses.replace(CODE, K=8, temperature=1.0, top_p=1.0)).values()
    answers = [answer for row in rows for answer in row["responses"]]
    assert {answer["finish_reason"] for answer in answers} == {"stop", "length"}
    for answer in answers:
        ids, stopped = answer["token_ids"], answer["finish_reason"] == "stop"
        assert [i for i, token in enumerate(ids) if token in ends] == ([len(ids) - 1] if stopped else [])
        assert stopped or len(ids) == 10
        assert answer["text"] == tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True)
        assert "<|im_end|>" not in answer["text"]


def test_overlong_prompts_are_left_out_and_counted(say: Say, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = {question: len(row["prompt_token_ids"]) for question, row in say().items()}
    limit = sorted(lengths.values())[-2]  # one prompt is longer
    kept = say(sampling=dataclasses.replace(CODE, max_prompt_tokens=limit))
    assert list(kept) == [question for question in QUESTIONS if lengths[question] <= limit]
    assert "1 of 6 prompts are over max_prompt_tokens; left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="sampling.max_prompt_tokens"):
        say(sampling=dataclasses.replace(CODE, max_prompt_tokens=1))


def test_metrics_say_how_many_answers_there_are_how_long_and_how_different() -> None:
    def answer(text: str, tokens: int, reason: str) -> dict[str, Any]:
        return {"text": text, "token_ids": [1] * tokens, "finish_reason": reason}

    same = {"responses": [answer("a", 1, "stop"), answer("a", 2, "stop"), answer(" ", 9, "length")]}
    other = {"responses": [answer("a", 4, "stop"), answer("b", 4, "stop"), answer("c", 4, "length")]}
    assert summary([same, other]) == {
        "prompts": 2,
        "answers": 6,
        "tokens": 4,
        "most_tokens": 9,
        "finished": 4 / 6,
        "empty": 1 / 6,
        "distinct": 5 / 6,
        "looping": 1 / 6,
        "alike": 0,
        "commonest": 1,
    }


@pytest.mark.parametrize("workers", [2, 3])
def test_several_workers_give_the_same_bytes(workers: int, say: Say) -> None:
    assert say(dealing=Dealing(workers=workers, nodes=1, save_seconds=0.01)) == say()
