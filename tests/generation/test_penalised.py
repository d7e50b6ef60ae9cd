"""Penalties and top_k: a naive twin of the draw, the three engines, and keys that stay as they were."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from answer_server import AnswerServer, Said, answering, engine
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from src import records
from src.artifact import Node
from src.config import UserError, fingerprint
from src.generation import vllm_engine
from src.generation.contract import PenalisedSampling, Request, Sampling, Shape, shape_of
from src.generation.draw import draw, penalised, seeded_uniforms
from src.generation.stage import Dealing, Generate
from src.generation.transformers_engine import TransformersEngine

PLAIN: dict[str, Any] = {"K": 2, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 24, "max_prompt_tokens": 300}
WPO: dict[str, Any] = {"top_k": 50, "presence_penalty": 0.1, "frequency_penalty": 0.1}
STRONG: dict[str, Any] = {"top_k": 5, "presence_penalty": 1.5, "frequency_penalty": 0.5}
DEALING = Dealing(workers=1, nodes=1, save_seconds=1e-9)
QUESTIONS = ("hi", "what is it", "ok?")


def naive_token(logits: np.ndarray, answer: list[int], sampling: PenalisedSampling, uniform: float) -> int:
    """The next token, in words: penalties, then temperature, then top_k, then top_p, then a walk to the uniform."""
    z = [float(logit) for logit in logits]
    for token in range(len(z)):
        times = sum(1 for said in answer if said == token)
        z[token] -= sampling.frequency_penalty * times + sampling.presence_penalty * (times > 0)
    if sampling.temperature == 0:
        return int(np.argmax(z))
    z = [logit / sampling.temperature for logit in z]
    if sampling.top_k is not None:
        kth = sorted(z, reverse=True)[: sampling.top_k][-1]
        z = [logit if logit >= kth else -np.inf for logit in z]
    weights = np.exp(np.array(z) - max(z))
    weights /= weights.sum()
    order = sorted(range(len(z)), key=lambda v: -weights[v] if sampling.top_p < 1 else v)
    nucleus, mass = list[int](), 0.0
    for token in order:
        if sampling.top_p < 1 and mass >= sampling.top_p:
            break
        nucleus.append(token)
        mass += weights[token]
    walked = 0.0
    for token in nucleus:
        walked += weights[token]
        if walked > uniform * mass:
            return token
    return nucleus[-1]


def our_tokens(z: torch.Tensor, answers: list[list[int]], s: PenalisedSampling, uniforms: torch.Tensor) -> list[int]:
    shape = shape_of(s)
    shaped = penalised(z, answers, shape.presence, shape.frequency) if shape.penalised else z
    return draw(shaped, s.temperature, s.top_p, uniforms, shape.top_k).tolist()


@pytest.mark.parametrize("vocab", [40, 1500])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("top_p", [0.6, 1.0])
@pytest.mark.parametrize("shape", [WPO, STRONG, {**STRONG, "top_k": None}, {**WPO, "top_k": 1}, {**WPO, "top_k": 9999}])
def test_a_draw_is_the_naive_one(vocab: int, temperature: float, top_p: float, shape: dict[str, Any]) -> None:
    """Fresh random logits and answers; over 512 tokens the draw has a shortcut, and rows that cannot take it."""
    sampling = PenalisedSampling(**PLAIN | shape | {"temperature": temperature, "top_p": top_p})
    rng = np.random.default_rng()
    rows = 24
    z = torch.tensor(rng.normal(size=(rows, vocab)) * rng.choice([0.1, 3.0], size=(rows, 1)), dtype=torch.float32)
    likely = z.topk(6, dim=-1).indices.tolist()
    answers = [[int(rng.choice(likely[row])) for _ in range(rng.integers(0, 9))] for row in range(rows)]
    uniforms = torch.tensor(rng.random(rows))
    expected = [naive_token(z[r].numpy().astype(float), answers[r], sampling, float(uniforms[r])) for r in range(rows)]
    found = our_tokens(z, answers, sampling, uniforms)
    # fp32 beside fp64: a uniform within rounding of a boundary may fall to either side, hardly ever in two rows.
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 1


def test_penalties_count_once_and_each_time_and_leave_the_logits_given_alone() -> None:
    z = torch.zeros(2, 4, dtype=torch.bfloat16)
    assert penalised(z, [[1, 1, 2], []], 0.5, 0.25).tolist() == [[0.0, -1.0, -0.75, 0.0], [0.0] * 4]
    assert penalised(z, [[1], [3]], -2.0, 0.0).tolist() == [[0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]
    assert not z.any()


def test_tokens_as_likely_as_the_last_of_the_top_k_stay() -> None:
    """bf16 logits tie all the time; which of two equals goes must not be for the sort to say."""
    z = torch.tensor([[1.0, 2.0, 1.0, 0.0, 1.0]])
    drawn = {draw(z, 1.0, 1.0, torch.tensor([u]), 2).item() for u in np.linspace(0, 0.999, 50)}
    assert drawn == {0, 1, 2, 4}


def test_the_nucleus_is_of_what_top_k_leaves() -> None:
    """Masses .4 .3 .2 .1: of two, .57 .43, so top_p .5 keeps the first alone; of all it would keep two."""
    z = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    uniform = torch.tensor([0.99])
    assert (draw(z, 1.0, 0.5, uniform).item(), draw(z, 1.0, 0.5, uniform, 2).item()) == (1, 0)


@pytest.mark.full
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_the_transformers_engine_is_the_naive_loop(
    architecture: str, temperature: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Token by token from the plain model; the prompt's own tokens are not penalised."""
    policy = request.getfixturevalue(architecture)
    sampling = PenalisedSampling(**PLAIN | STRONG | {"temperature": temperature})
    model = AutoModelForCausalLM.from_pretrained(policy, attn_implementation="eager").eval()
    own = TransformersEngine(dtype="float32", batch_answers=4, device="cpu")
    made = answers_of(own, sampling, policy, tmp_path / "shaped")
    for row in made:
        for answer in row["responses"]:
            ids, uniforms = answer["token_ids"], seeded_uniforms(answer["seed"], 24)
            with torch.no_grad():
                logits = model(torch.tensor([row["prompt_token_ids"] + ids])).logits[0]
            after = logits[len(row["prompt_token_ids"]) - 1 : -1].numpy().astype(float)
            naive = [naive_token(z, ids[:t], sampling, float(uniforms[t])) for t, z in enumerate(after)]
            assert ids == naive
    plain = answers_of(own, Sampling(**PLAIN | {"temperature": temperature}), policy, tmp_path / "plain")
    assert repeated(made) < repeated(plain)


def repeated(rows: list[records.Row]) -> float:
    """Share of tokens that the answer had before."""
    ids = [answer["token_ids"] for row in rows for answer in row["responses"]]
    return 1 - sum(len(set(one)) for one in ids) / sum(map(len, ids))


def answers_of(asked: Any, sampling: Sampling, policy: Path, place: Path) -> list[records.Row]:
    for folder in ("prompts", "out"):
        (place / folder).mkdir(parents=True)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    rows = [{"prompt_id": records.prompt_id(c), "messages": c, "source": "x", "checks": "[]"} for c in chats]
    records.write_rows(place / "prompts", rows, records.PROMPTS)
    stage = Generate(sampling=sampling, engine=asked, seed=0, dealing=DEALING)
    stage(place / "prompts", policy, out=place / "out")
    return records.read_rows(place / "out", records.RESPONSES)


@pytest.fixture
def server() -> Iterator[AnswerServer]:
    with answering() as server:
        yield server


@pytest.mark.full
@pytest.mark.parametrize("ask", ["chat", "tokens"])
def test_a_server_is_sent_all_three(ask: str, server: AnswerServer, llama: Path, tmp_path: Path) -> None:
    server.root, server.say = str(llama), lambda body, number: Said("x", "stop", [70])
    words = ("ask=chat", "source=other") if ask == "chat" else ("ask=tokens",)
    answers_of(engine(server.url, *words, "+endpoint.extra_body.user=me"), wpo(), llama, tmp_path / "shaped")
    assert {name: server.bodies[0][name] for name in (*WPO, "user")} == {**WPO, "user": "me"}
    del server.bodies[:]
    answers_of(engine(server.url, *words), Sampling(**PLAIN), llama, tmp_path / "plain")
    assert not {"presence_penalty", "frequency_penalty"}.intersection(server.bodies[0])
    assert server.bodies[0].get("top_k", -1) == -1


def test_openai_itself_is_not_asked_for_top_k(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its penalties are fine; refused before a tokenizer is loaded or a client made."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    asked = engine("http://x:1/v1", "endpoint.base_url=null", "ask=chat", "source=gpt-4-turbo")
    with pytest.raises(
        UserError, match=r"^sampling.top_k: 50, but api.openai.com knows no top_k; set it to null, or hard[^\n]*$"
    ):
        asked.open(tmp_path / "nowhere", wpo())
    asked.check_sampling(dataclasses.replace(wpo(), top_k=None))
    asked.check_sampling(Sampling(**PLAIN))
    engine("http://x:1/v1").check_sampling(wpo())


def wpo() -> PenalisedSampling:
    return PenalisedSampling(**PLAIN | WPO)


@pytest.mark.parametrize(
    ("sampling", "sent"),
    [
        (PenalisedSampling(**PLAIN | WPO), WPO),
        (PenalisedSampling(**PLAIN | WPO | {"top_k": None}), {"presence_penalty": 0.1, "frequency_penalty": 0.1}),
        (PenalisedSampling(**PLAIN | {"top_k": 7, "presence_penalty": 0.0, "frequency_penalty": 0.0}), {"top_k": 7}),
        (Sampling(**PLAIN), {}),
    ],
)
def test_vllm_is_told_what_is_set_and_nothing_else(
    sampling: Sampling, sent: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real request of the engine, with vLLM's two names it needs in place of a vLLM."""
    given: list[Any] = []
    modules = {
        "vllm": {"SamplingParams": lambda **more: SimpleNamespace(**more)},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(FINAL_ONLY=2)},
        "vllm.inputs": {"tokens_input": list},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    sampler = object.__new__(vllm_engine.VllmSampler)
    sampler.sampling, sampler.stops = sampling, frozenset({2})
    sampler.llm = SimpleNamespace(add_request=lambda name, ids, params: given.append(params))
    sampler._ask(vllm_engine.Cell(Request("p", [], [5, 6], {0: 3}), 0, 3))
    (params,) = given
    assert {name: value for name, value in vars(params).items() if name in WPO} == sent
    assert (params.seed, params.temperature, params.top_p, params.max_tokens) == (3, 0.7, 0.9, 24)


def test_ordinary_settings_keep_their_keys() -> None:
    """Spelt out: a further field in it would make every answer of every store anew."""
    told = {"_target_": "src.generation.contract.Sampling", **PLAIN}
    assert fingerprint(Sampling(**PLAIN)) == told
    stage = Generate(
        sampling=Sampling(**PLAIN),
        engine=TransformersEngine(dtype="float32", batch_answers=4, device="cpu"),
        seed=0,
        dealing=DEALING,
    )
    assert fingerprint(stage)["sampling"] == told and Node("x", stage).key == "eade8c789b43019720b8"
    shaped = dataclasses.replace(stage, sampling=wpo())
    assert fingerprint(shaped)["sampling"] == {"_target_": "src.generation.contract.PenalisedSampling", **PLAIN, **WPO}
    off = {"top_k": None, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert shape_of(Sampling(**PLAIN)) == shape_of(PenalisedSampling(**PLAIN | off)) == Shape(None, 0.0, 0.0)
    assert shaped.shared() != stage.shared()


@pytest.mark.parametrize(
    ("name", "value"), [("top_k", 0), ("top_k", -1), ("presence_penalty", 2.01), ("frequency_penalty", -2.01)]
)
def test_what_is_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        PenalisedSampling(**PLAIN | WPO | {name: value})
