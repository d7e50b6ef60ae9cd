"""Measure sampling, WPO's weights and the traps of the public code with a small chat model.

Called by bench.differences with `--small-model`; answers are cut at 64 tokens.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.differences import ROOT, Ids, Table, Told, fixed, sppo, told, wpo
from src.data.checks import repetition
from src.generation.engine import Answer, Request, Sampling
from src.generation.transformers_engine import TransformersEngine
from src.modeling.logps import AnswerLogps, answer_logps, make_scorer
from src.modeling.packing import Group, pack
from src.modeling.policy import load_policy, load_tokenizer, render

PROMPTS, MOST_TOKENS = 16, 64
OTHERS, LONGEST_PROMPT = 40, 128
"""Pairs of the file, and the most tokens of their prompts."""


class Said(NamedTuple):
    """A prompt, the header of the assistant's turn at its end, and K sampled answers."""

    prompt: Ids
    header: Ids
    answers: list[Answer]

    @property
    def told(self) -> Told:
        return Told(self.prompt, [answer["token_ids"] for answer in self.answers])


def tables(policy: Path, data: Path) -> Iterator[Table]:
    tokenizer = load_tokenizer(policy)
    own = {name: sampled(policy, tokenizer, setting) for name, setting in settings().items()}
    logps = {name: scored(policy, [one.told for one in said]) for name, said in own.items()}
    yield sampling(own, logps)
    short = (pair for pair in told(data, tokenizer) if len(pair.prompt) <= LONGEST_PROMPT)
    others = [Told(prompt, [answer[:MOST_TOKENS] for answer in both]) for prompt, both in islice(short, OTHERS)]
    yield clamping(logps | {"other models'": scored(policy, others)})
    wpos = list(own)[-1]
    yield traps(policy, tokenizer, own[wpos], logps[wpos])


def settings() -> dict[str, Sampling]:
    """Return the sampling of SPPO's paper, of its code, and of WPO."""
    published = (sppo("paper").sampling, sppo("code").sampling, wpo("wpo_v2").sampling)
    return {f"T {one.temperature}, top_p {one.top_p}": one for one in published}


def sampled(policy: Path, tokenizer: Any, published: Sampling) -> list[Said]:
    """Sample answers to bundled prompts."""
    setting = dataclasses.replace(published, max_new_tokens=MOST_TOKENS)
    lines = (ROOT / "src" / "data" / "embedded" / "part1.jsonl").read_text().splitlines()[:PROMPTS]
    asked = [json.loads(line)["messages"] for line in lines]
    prompts = [render(tokenizer, messages) for messages in asked]
    requests = [
        Request(str(n), k, prompt, 1000 * n + k)
        for n, (messages, prompt) in enumerate(zip(asked, prompts, strict=True))
        for k in range(setting.K)
    ]
    engine = TransformersEngine(dtype="float32", batch_answers=64, device="cpu")
    made: dict[tuple[str, int], Answer] = {}
    engine.open(policy, setting)(
        requests, lambda request, answer: made.update({(request.prompt_id, request.k): answer})
    )
    bare = [len(render(tokenizer, messages, add_generation_prompt=False)) for messages in asked]
    return [
        Said(prompt, prompt[end:], [made[str(n), k] for k in range(setting.K)])
        for n, (prompt, end) in enumerate(zip(prompts, bare, strict=True))
    ]


def scored(policy: Path, groups: list[Told]) -> list[AnswerLogps]:
    """Score answers, with the log-weights of sampled alignment."""
    model = make_scorer(load_policy(policy, "float32", "cpu"))
    with torch.no_grad():
        return [answer_logps(model, pack([Group(*group)]), "sampled") for group in groups]


def sampling(own: dict[str, list[Said]], logps: dict[str, list[AnswerLogps]]) -> Table:
    rows = []
    for name, said in own.items():
        answers = [answer for one in said for answer in one.answers]
        nats = mean(float(nats) for each in logps[name] for nats in each.logp / each.tokens)
        ended, tokens = mean(a["finish_reason"] == "stop" for a in answers), mean(len(a["token_ids"]) for a in answers)
        repeated = mean(repetition(answer["text"]) for answer in answers)
        rows.append([name, str(len(answers)), fixed(ended), f"{tokens:.1f}", fixed(repeated), f"{nats:.2f}"])
    head = ["setting", "answers", "ended by themselves", "tokens", "repeated trigrams", "nats per token"]
    return Table("Sampling", head, rows)


def clamping(logps: dict[str, list[AnswerLogps]]) -> Table:
    """Weigh pairs. A pair is two answers to one prompt: the first two, the next two."""
    rows = []
    for name, some in logps.items():
        of_pairs = [each.log_weight[: len(each.log_weight) // 2 * 2].view(-1, 2).sum(1) for each in some]
        weights = torch.cat(of_pairs).exp().numpy()
        shown = (weights.mean(), median(weights.tolist()), np.minimum(weights, 1).mean())
        above = fixed(float((weights > 1).mean()))
        rows.append([name, str(len(weights)), above, *(fixed(value, 2) for value in shown)])
    return Table("Weights", ["answers", "pairs", "above 1", "mean weight", "median", "mean, clamped at 1"], rows)


def traps(policy: Path, tokenizer: Any, own: list[Said], logps: list[AnswerLogps]) -> Table:
    """Return what each trap adds to the summed log-probability of an answer, which is what a loss reads."""
    eos = [int(tokenizer.eos_token_id)]
    twice = scored(policy, [Told([int(tokenizer.bos_token_id), *one.prompt], one.told.answers) for one in own])
    found = {"a second BOS": [float(v) for a, b in zip(twice, logps, strict=True) for v in a.logp - b.logp]}
    answers = [(one.prompt, answer) for one in own for answer in one.answers]
    added = {
        "a second EOS": [Told(p + a["token_ids"], [eos]) for p, a in answers if a["finish_reason"] == "stop"],
        "the header in the loss": [Told(one.prompt[: -len(one.header)], [one.header]) for one in own],
        "EOS after a cut answer": [
            Told(p + a["token_ids"], [eos]) for p, a in answers if a["finish_reason"] == "length"
        ],
    }
    found |= {name: [float(each.logp) for each in scored(policy, groups)] for name, groups in added.items()}
    found["the answer itself"] = [float(nats) for each in logps for nats in each.logp]
    rows = [
        [name, str(len(nats)), *(fixed(value, 2, "+") for value in (mean(nats), min(nats), max(nats)))]
        for name, nats in found.items()
        if nats
    ]
    return Table("Traps", ["trap", "times", "mean, nats", "lowest", "highest"], rows)
