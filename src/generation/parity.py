"""Is an engine the same model as transformers has? Greedy answers and log-probabilities, side by side, in fp32.

Both are given the same prompts and the same checkpoint. transformers goes through them one at a time with eager
attention: slow, plain, and nothing of our own fast paths in it.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from src.generation.engine import Engine, Measuring, Request, Sampling, Sequence
from src.kernel.config import Device, UserError
from src.kernel.processes import Crew, run_in_processes
from src.kernel.rows import Row
from src.modeling.policy import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS, TOKENS = 16, 64
"""Compared at most: prompts, and tokens of an answer."""
LIMIT = 1e-3
"""Mean |Δlogp| in nats. In fp32 engines are within 1e-5; a soft-cap left out moves a hundred times the limit."""
CAUSES = "usual causes: a soft-cap left out (Gemma-2), a doubled BOS, another chat template, other weights"


@runtime_checkable
class Probeable(Engine, Measuring, Protocol):
    dtype: Precision


class Told(NamedTuple):
    """An engine's greedy answer to each prompt, in order, and its tokens' log-probabilities."""

    answers: list[list[int]]
    logps: list[list[float]]


class Parity(NamedTuple):
    """How far an engine is from transformers."""

    prompts: int
    tokens: int
    mean: float
    """Of |Δlogp| over answer tokens, nats."""
    equal: int
    """Prompts whose greedy answers are equal."""
    odd_prompts: int
    """Prompts that are not what the chat template gives, or do not begin with exactly one BOS."""

    @property
    def warnings(self) -> list[str]:
        warnings = []
        if not self.mean <= LIMIT:
            warnings.append(f"mean |Δlogp| {self.mean:.2g} is over {LIMIT:.2g}; {CAUSES}")
        if self.odd_prompts:
            what = "are not what the template gives, or do not begin with exactly one BOS"
            warnings.append(f"{self.odd_prompts} of {self.prompts} prompts {what}")
        return warnings


def greedy(sampling: Sampling) -> Sampling:
    few = min(TOKENS, sampling.max_new_tokens)
    return Sampling(K=1, temperature=0.0, top_p=1.0, max_new_tokens=few, max_prompt_tokens=sampling.max_prompt_tokens)


def prompts_of(rows: list[Row], policy: Path, longest: int) -> list[Request]:
    """Renders the first prompts that are short enough. Raises UserError where there is none."""
    from src.modeling.policy import load_tokenizer, render

    tokenizer = load_tokenizer(policy)
    rendered = (Request(r["prompt_id"], r["messages"], render(tokenizer, r["messages"]), {0: 0}) for r in rows)
    kept = [request for request in rendered if len(request.token_ids) <= longest][:PROMPTS]
    if not kept:
        raise UserError(f"sampling.max_prompt_tokens: no held-out prompt has {longest} or fewer")
    return kept


def ask(engine: Probeable, policy: Path, sampling: Sampling, requests: list[Request], folder: Path) -> Told:
    """Asks the engine; each time in a process of its own, if it is one that must."""
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
    crew = Crew("parity", 1, engine.device, engine.devices_each)
    run_in_processes(partial(_write, question, file), crew, folder, lambda: None)
    return json.loads(file.read_text())


def _write(question: partial[Any], file: Path, number: int, count: int) -> None:
    file.write_text(json.dumps(question()))


def compare(told: Told, requests: list[Request], policy: Path, device: Device, max_new_tokens: int) -> Parity:
    """Compares what the engine told with transformers and the checkpoint `policy`."""
    from src.modeling.policy import load_policy, load_tokenizer

    model, tokenizer = load_policy(policy, "float32", device, "eager"), load_tokenizer(policy)
    gaps: list[float] = []
    equal = 0
    for request, ids, logps in zip(requests, *told, strict=True):
        plain = plain_logps(model, Sequence(request.token_ids, ids))
        gaps += [abs(a - b) for a, b in zip(logps, plain, strict=True)]
        equal += plain_greedy(model, request.token_ids, max_new_tokens) == ids
    odd = sum(not (_is_templated(tokenizer, r) and _has_one_bos(tokenizer, r.token_ids)) for r in requests)
    return Parity(len(requests), len(gaps), sum(gaps) / len(gaps), equal, odd)


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


def _is_templated(tokenizer: PreTrainedTokenizerBase, request: Request) -> bool:
    """Compares a prompt with the template's own ids; one that spells a special token is ours to disarm, and passes."""
    specials = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if any(special in message["content"] for special in specials for message in request.messages):
        return True
    whole: Any = tokenizer.apply_chat_template(request.messages, add_generation_prompt=True, return_dict=True)
    return list(whole["input_ids"]) == request.token_ids


def _has_one_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> bool:
    """Counts BOS tokens at the start; none is right for a tokenizer that never begins a text with it."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return True
    begins = next((i for i, token in enumerate(ids) if token != bos), len(ids))
    return begins == 1 or (begins == 0 and tokenizer("a")["input_ids"][:1] != [bos])  # pyright: ignore
