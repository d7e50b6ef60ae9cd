"""Sampling: the draw, the seeds, the end of an answer, and a run that is killed and started again.

Run: python -m pytest -q tests/test_generation.py
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from src import records
from src.artifact import WORK
from src.config import UserError
from src.generation.merge import Merge
from src.generation.stage import Answer, Engine, Generate, Sampler, Sampling
from src.generation.transformers_engine import FEW, TransformersEngine, draw
from src.model import load_tokenizer

GRID = 101
UNIFORMS = [(i + 0.5) / GRID for i in range(GRID)]
QUESTIONS = ("hi", "what is it", "None", "and with his words that they had by this have from or one", "ok?", "be it so")
CODE = Sampling(K=3, temperature=0.7, top_p=0.9, max_new_tokens=10, max_prompt_tokens=200)


def naive_draw(logits: Sequence[float], top_p: float, uniform: float) -> int:
    """Nucleus sampling by inverse CDF, in words: likeliest first, until `top_p` is reached; then walk to u."""
    weights = torch.tensor(logits, dtype=torch.float64).softmax(0).tolist()
    nucleus, mass = [], 0.0
    for token in sorted(range(len(weights)), key=lambda v: -weights[v]):
        if mass >= top_p:
            break
        nucleus.append(token)
        mass += weights[token]
    walked = 0.0
    for token in nucleus:
        walked += weights[token]
        if walked > uniform * mass:
            return token
    return nucleus[-1]


def random_logits(rows: int, vocab: int, spread: float, seed: int = 0) -> Tensor:
    return spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 0.01])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_draw_is_nucleus_sampling_by_inverse_cdf(top_p: float, spread: float) -> None:
    for row in random_logits(rows=4, vocab=50, spread=spread):
        drawn = draw(row.expand(GRID, -1), top_p, torch.tensor(UNIFORMS, dtype=torch.float64))
        assert drawn.tolist() == [naive_draw(row.tolist(), top_p, u) for u in UNIFORMS]


@pytest.mark.parametrize(("spread", "held"), [(4.0, True), (0.1, False)])
def test_draw_from_a_large_vocabulary_is_the_same_with_and_without_the_shortcut(spread: float, held: bool) -> None:
    """Peaked rows: the likeliest 512 of 2000 tokens hold the nucleus. Flat rows: they do not, and all are sorted."""
    for row in random_logits(rows=2, vocab=2000, spread=spread):
        assert bool(row.softmax(-1).topk(FEW).values.sum() > 0.91) == held
        drawn = draw(row.expand(GRID, -1), 0.9, torch.tensor(UNIFORMS, dtype=torch.float64))
        assert drawn.tolist() == [naive_draw(row.tolist(), 0.9, u) for u in UNIFORMS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_flat_neighbour_does_not_change_what_a_row_draws(dtype: torch.dtype) -> None:
    """One flat row sends the whole batch down the slow way. Logits of a bf16 model tie all the time."""
    peaked, flat = (random_logits(n, 2000, spread).to(dtype).float() for n, spread in ((GRID, 4.0), (1, 0.1)))
    uniforms = torch.tensor([*UNIFORMS, 0.5], dtype=torch.float64)
    together = draw(torch.cat([peaked, flat]), 0.9, uniforms)
    assert together[:-1].tolist() == draw(peaked, 0.9, uniforms[:-1]).tolist()


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_draw_has_the_distribution_it_claims(top_p: float) -> None:
    """Over N equidistant uniforms, a token of probability p is drawn N p times, give or take one; others never."""
    n, row = 5000, random_logits(rows=1, vocab=40, spread=2.0)[0]
    p, order = row.double().softmax(0).sort(descending=True)
    size = int((p.cumsum(0) < top_p).sum()) + 1 if top_p < 1 else 40
    expected = torch.zeros(40, dtype=torch.float64).scatter(0, order[:size], p[:size] / p[:size].sum())
    counts = draw(row.expand(n, -1), top_p, (torch.arange(n).double() + 0.5) / n).bincount(minlength=40)
    assert (counts - n * expected).abs().max() <= 1
    assert counts[expected == 0].sum() == 0


def test_without_nucleus_no_token_is_out_of_reach() -> None:
    """top_p = 1 cuts nothing: the uniform next to 1 draws the least likely token."""
    rows = random_logits(rows=4, vocab=50_000, spread=2.0)
    drawn = draw(rows, 1.0, torch.full((4,), 1 - 2**-53, dtype=torch.float64))
    assert drawn.tolist() == rows.argmin(-1).tolist()


# The stage


def ending_often(policy: Path, folder: Path) -> Path:
    """A copy with thirty ids that end an answer, so that some answers end by themselves and leave the batch."""
    shutil.copytree(policy, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["eos_token_id"] = [settings["eos_token_id"], *range(300, 329)]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def talker(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ending_often(llama, tmp_path_factory.mktemp("talker") / "policy")


def stops(policy: Path) -> set[int]:
    ids = json.loads((policy / "generation_config.json").read_text())["eos_token_id"]
    return set(ids if isinstance(ids, list) else [ids])


def write_prompts(folder: Path, questions: Sequence[str]) -> Path:
    folder.mkdir(parents=True)
    chats = [[{"role": "user", "content": question}] for question in questions]
    rows = [{"prompt_id": records.prompt_id(c), "messages": c, "source": "test", "checks": "[]"} for c in chats]
    records.write_rows(folder, rows, records.PROMPTS)
    return folder


def engine(batch_answers: int = 4, dtype: Any = "float32") -> TransformersEngine:
    return TransformersEngine(dtype=dtype, batch_answers=batch_answers, device="cpu", attention=None)


Say = Callable[..., dict[str, records.Row]]


@pytest.fixture
def say(talker: Path, tmp_path: Path) -> Say:
    """Run the stage in fresh folders; the row of each question."""

    def run(
        questions: Sequence[str] = QUESTIONS,
        sampling: Sampling = CODE,
        seed: int = 0,
        policy: Path = talker,
        batch: int = 4,
        dtype: str = "float32",
    ) -> dict[str, records.Row]:
        here = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        prompts, out = write_prompts(here / "prompts", questions), here / "out"
        Generate(sampling=sampling, engine=engine(batch, dtype), seed=seed)(prompts, policy, out=out)
        rows = records.read_rows(out, records.RESPONSES)
        return {row["messages"][0]["content"]: row for row in rows}

    return run


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_every_token_is_the_naive_draw_from_the_plain_model(
    architecture: str, say: Say, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Padding, caches, sliding windows, batching and rows that leave change nothing: step t uses the t-th uniform."""
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_five_answers_are_the_first_five_of_eight(dtype: str, say: Say) -> None:
    """Bit for bit, in bf16 too: every batch holds the same rows, so every rounding error is the same."""
    five, eight = (say(sampling=dataclasses.replace(CODE, K=k), dtype=dtype) for k in (5, 8))
    assert {q: row["responses"] for q, row in five.items()} == {q: row["responses"][:5] for q, row in eight.items()}


def test_an_answer_does_not_depend_on_the_other_prompts(say: Say) -> None:
    expected = say()
    for other in (say(QUESTIONS[::-1]), say(batch=1), say(batch=64), say([*QUESTIONS, "one more", "and more"])):
        assert {question: other[question] for question in QUESTIONS} == expected
    assert say(QUESTIONS[2:4]) == {question: expected[question] for question in QUESTIONS[2:4]}


def test_rows_keep_the_order_of_the_prompts(say: Say) -> None:
    assert list(say(QUESTIONS[::-1])) == list(QUESTIONS[::-1])


def test_answers_differ_by_seed_prompt_and_number(say: Say) -> None:
    rows = [*say(seed=0).values(), *say(seed=1).values()]
    answers = [answer for row in rows for answer in row["responses"]]
    assert len({answer["seed"] for answer in answers}) == len(answers)
    assert len({tuple(answer["token_ids"]) for answer in answers}) == len(answers)


def test_an_answer_ends_in_eos_exactly_where_one_was_sampled(say: Say, talker: Path) -> None:
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


# Killed and started again


class PowerCut(Exception):
    pass


@dataclasses.dataclass
class Fragile:
    """The real engine, whose sampler dies before batch number `dies_at` and notes the seeds it was asked for."""

    inner: Engine
    dies_at: int | None = None
    batches: list[list[int]] = dataclasses.field(default_factory=list)

    @property
    def batch_answers(self) -> int:
        return self.inner.batch_answers

    def open(self, policy: Path, sampling: Sampling) -> Sampler:
        self.sampler = self.inner.open(policy, sampling)
        return self

    def render(self, messages: list[dict[str, str]]) -> list[int]:
        return self.sampler.render(messages)

    def answer(self, prompts: list[list[int]], seeds: list[int]) -> list[Answer]:
        if len(self.batches) == self.dies_at:
            raise PowerCut
        self.batches.append(seeds)
        return self.sampler.answer(prompts, seeds)


def test_a_killed_run_makes_only_the_missing_batches_and_the_same_bytes(talker: Path, tmp_path: Path) -> None:
    """6 prompts x K=3 in batches of 4 are 2 batches a k, 6 in all; 3 are made before the cut, 3 after it."""
    prompts = write_prompts(tmp_path / "prompts", QUESTIONS)

    def run(fragile: Fragile, out: str) -> bytes:
        Generate(sampling=CODE, engine=fragile, seed=0)(prompts, talker, out=tmp_path / out)
        return (tmp_path / out / records.ROWS).read_bytes()

    whole, first, second = Fragile(engine()), Fragile(engine(), dies_at=3), Fragile(engine())
    expected = run(whole, "whole")
    with pytest.raises(PowerCut):
        run(first, "cut")
    assert not (tmp_path / "cut" / records.ROWS).exists()
    (tmp_path / "cut" / WORK / "002-00000000.tmp").write_bytes(b"torn by the power cut")
    assert run(second, "cut") == expected
    assert len(whole.batches) == 6
    assert first.batches + second.batches == whole.batches

    third = Fragile(engine())
    sorted((tmp_path / "cut" / WORK).glob("*.parquet"))[1].unlink()
    assert run(third, "cut") == expected
    assert len(third.batches) == 1


def responses(here: Path, policy: Path, questions: Sequence[str], seed: int) -> Path:
    prompts, out = write_prompts(here / f"prompts{seed}", questions), here / f"responses{seed}"
    Generate(sampling=CODE, engine=engine(), seed=seed)(prompts, policy, out=out)
    return out


def test_merge_puts_answers_side_by_side(talker: Path, tmp_path: Path) -> None:
    inputs = [responses(tmp_path, talker, QUESTIONS[:3], seed) for seed in (0, 1)]
    Merge()(*inputs, out=tmp_path)
    a, b, ab = (records.read_rows(folder, records.RESPONSES) for folder in (*inputs, tmp_path))
    assert [row["responses"] for row in ab] == [x["responses"] + y["responses"] for x, y in zip(a, b, strict=True)]
    assert [row | {"responses": []} for row in ab] == [row | {"responses": []} for row in a]


def test_merge_refuses_answers_to_other_prompts(talker: Path, tmp_path: Path) -> None:
    a, b = (responses(tmp_path, talker, QUESTIONS[:2][::step], seed) for seed, step in ((0, 1), (1, -1)))
    with pytest.raises(UserError, match="answers other prompts than"):
        Merge()(a, b, out=tmp_path)
