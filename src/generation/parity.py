"""Is an engine the same model as transformers has? Greedy answers and log-probabilities, side by side.

Both are given the same prompts and the same checkpoint. transformers goes through them one at
a time with eager attention: slow, plain, and nothing of our own fast paths in it. How far a mean |Δlogp| may be is read
off transformers itself: what the engine's number type moves there is what it may move here, TIMES over.
"""

from __future__ import annotations

import gc
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from src.generation.engine import Engine, Measuring, Request, Sampling, Sequence
from src.kernel import records
from src.kernel.config import Device, UserError
from src.kernel.workers import Crew, run_in_processes
from src.modeling.policy import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS, TOKENS = 16, 64
"""Compared at most: prompts, and tokens of an answer."""
TIMES = 3.0
"""Kernels that sum in other orders differ about as much from each other as each from fp32."""
LEAST = 1e-3
"""Nats. In fp32 the engines are within 1e-5; a soft-cap left out moves a hundred times this."""
CAUSES = "usual causes: a soft-cap left out (Gemma-2), a doubled BOS, another chat template, other weights"


@runtime_checkable
class Probeable(Engine, Measuring, Protocol):
    dtype: Precision


class Told(NamedTuple):
    """Of each prompt, in order: the greedy answer, and its tokens' log-probabilities."""

    answers: list[list[int]]
    logps: list[list[float]]


class Parity(NamedTuple):
    """How far an engine is from transformers."""

    prompts: int
    tokens: int
    mean: float
    """Of |Δlogp| over answer tokens, nats; transformers in the engine's number type."""
    largest: float
    noise: float
    """The same mean between transformers in the engine's number type and in fp32."""
    differs_at: list[int]
    """First token that differs, of every prompt whose greedy answers differ."""
    templated: int
    """Prompts with the ids that the tokenizer's own `apply_chat_template` gives."""
    wrong_bos: int
    """Prompts that do not begin with one BOS, though the tokenizer has one."""

    @property
    def limit(self) -> float:
        return max(LEAST, TIMES * self.noise)

    @property
    def warnings(self) -> list[str]:
        found: list[str] = []
        if not self.mean <= self.limit:
            found.append(f"mean |Δlogp| {self.mean:.2g} is over {self.limit:.2g}; {CAUSES}")
        if self.wrong_bos:
            found.append(f"{self.wrong_bos} of {self.prompts} prompts do not begin with exactly one BOS")
        if self.templated < self.prompts:
            found.append(f"{self.prompts - self.templated} of {self.prompts} prompts are not what the template gives")
        return found


def greedy(sampling: Sampling) -> Sampling:
    few = min(TOKENS, sampling.max_new_tokens)
    return Sampling(K=1, temperature=0.0, top_p=1.0, max_new_tokens=few, max_prompt_tokens=sampling.max_prompt_tokens)


def prompts_of(rows: list[records.Row], policy: Path, longest: int) -> list[Request]:
    from src.modeling.policy import load_tokenizer, render

    tokenizer = load_tokenizer(policy)
    rendered = (Request(r["prompt_id"], r["messages"], render(tokenizer, r["messages"]), {0: 0}) for r in rows)
    kept = [request for request in rendered if len(request.token_ids) <= longest][:PROMPTS]
    if not kept:
        raise UserError(f"sampling.max_prompt_tokens: no held-out prompt has {longest} or fewer")
    return kept


def ask(engine: Probeable, policy: Path, sampling: Sampling, requests: list[Request], folder: Path) -> Told:
    """What the engine says; in a process of its own each, where it is one that must."""
    answers = _here_or_apart(engine, partial(answer, engine, policy.resolve(), sampling, requests), folder)
    sequences = [Sequence(r.token_ids, ids) for r, ids in zip(requests, answers, strict=True)]
    return Told(answers, _here_or_apart(engine, partial(measure, engine, policy.resolve(), sequences), folder))


def answer(engine: Engine, policy: Path, sampling: Sampling, requests: list[Request]) -> list[list[int]]:
    made = {made.prompt_id: made.answer.token_ids for made in engine.open(policy, sampling).answers(requests)}
    return [[int(token) for token in made[request.prompt_id]] for request in requests]


def measure(engine: Measuring, policy: Path, sequences: list[Sequence]) -> list[list[float]]:
    longest = max(len(prompt) + len(answer) for prompt, answer in sequences)
    return engine.measure(policy, longest).logps(sequences)


def _here_or_apart(engine: Engine, question: partial[Any], folder: Path) -> Any:
    if not engine.apart:
        return question()
    file = (folder / "told.json").resolve()
    crew = Crew("parity", "hardware.engine", 1, 1, engine.device, engine.devices_each)
    run_in_processes(partial(_tell, question, file), crew, folder, lambda: None)
    return json.loads(file.read_text())


def _tell(question: partial[Any], file: Path, number: int, count: int) -> None:
    file.write_text(json.dumps(question()))


def compare(
    told: Told, requests: list[Request], policy: Path, dtype: Precision, device: Device, max_new_tokens: int
) -> Parity:
    """What the engine told beside transformers with the checkpoint `policy`."""
    from src.modeling.policy import load_tokenizer

    sequences = [Sequence(r.token_ids, ids) for r, ids in zip(requests, told.answers, strict=True)]
    model = _load(policy, dtype, device)
    plain = [plain_logps(model, sequence) for sequence in sequences]
    greedy = [plain_greedy(model, request.token_ids, max_new_tokens) for request in requests]
    exact = plain
    if dtype != "float32":
        del model
        gc.collect()
        model = _load(policy, "float32", device)
        exact = [plain_logps(model, sequence) for sequence in sequences]
    apart, noise = _gaps(told.logps, plain), _gaps(plain, exact)
    tokenizer = load_tokenizer(policy)
    return Parity(
        prompts=len(requests),
        tokens=len(apart),
        mean=sum(apart) / len(apart),
        largest=max(apart),
        noise=sum(noise) / len(noise),
        differs_at=[place for pair in zip(told.answers, greedy, strict=True) if (place := _parting(*pair)) is not None],
        templated=sum(_is_templated(tokenizer, request) for request in requests),
        wrong_bos=sum(not _has_one_bos(tokenizer, request.token_ids) for request in requests),
    )


def _load(policy: Path, dtype: Precision, device: Device) -> Any:
    from src.modeling.policy import load_policy

    return load_policy(policy, dtype, device, "eager")


def plain_logps(model: Any, sequence: Sequence) -> list[float]:
    import torch

    ids = torch.tensor([sequence.prompt + sequence.answer], device=model.device)
    with torch.inference_mode():
        logits = model(ids, use_cache=False).logits[0, len(sequence.prompt) - 1 : -1]
        logps = logits.float().log_softmax(-1)
    return [float(row[token]) for row, token in zip(logps.cpu(), sequence.answer, strict=True)]


def plain_greedy(model: Any, prompt: list[int], max_new_tokens: int) -> list[int]:
    import torch
    from transformers import GenerationConfig

    from src.modeling.policy import stop_ids

    stops = sorted(stop_ids(Path(model.name_or_path)))
    # In place of the model's own, whose penalties would be filled in.
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=stops[0]
    )
    ids = torch.tensor([prompt], device=model.device)
    with torch.inference_mode():
        made = model.generate(ids, attention_mask=torch.ones_like(ids))
    return [int(token) for token in made[0, len(prompt) :]]


def _gaps(ours: list[list[float]], theirs: list[list[float]]) -> list[float]:
    return [abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]


def _parting(one: list[int], other: list[int]) -> int | None:
    """Place of the first token that differs; None where all are equal."""
    if one == other:
        return None
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _is_templated(tokenizer: PreTrainedTokenizerBase, request: Request) -> bool:
    """Special-token text inside a message is ours to disarm, so such a prompt is not compared."""
    specials = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if any(special in message["content"] for special in specials for message in request.messages):
        return True
    whole: Any = tokenizer.apply_chat_template(request.messages, add_generation_prompt=True, return_dict=True)
    return list(whole["input_ids"]) == request.token_ids


def _has_one_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> bool:
    """No BOS is right for a tokenizer that never begins a text with it."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return True
    begins = next((i for i, token in enumerate(ids) if token != bos), len(ids))
    return begins == 1 or (begins == 0 and tokenizer("a")["input_ids"][:1] != [bos])  # pyright: ignore
