"""The transformers engine: `model.generate` on padded batches, every answer with a random stream of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from src.config import Free, config
from src.generation.stage import Answer, Sampler, Sampling

if TYPE_CHECKING:
    from torch import Tensor


@config
class TransformersEngine:
    """How answers are sampled on one device."""

    dtype: Literal["float32", "bfloat16"]
    batch_answers: Free[PositiveInt]
    """Answers sampled side by side."""
    device: Free[str]
    attention: Free[str | None]
    """None: what transformers picks for the architecture."""

    def open(self, policy: Path, sampling: Sampling) -> Sampler:
        return _Sampler(self, policy, sampling)


class _Sampler:
    def __init__(self, engine: TransformersEngine, policy: Path, sampling: Sampling) -> None:
        from src.model import load_policy, load_tokenizer, stop_ids

        self.sampling = sampling
        self.tokenizer = load_tokenizer(policy)
        self.model: Any = load_policy(policy, engine.dtype, engine.device, engine.attention)
        self.stops = stop_ids(self.model)

    def render(self, messages: list[dict[str, str]]) -> list[int]:
        from src.model import render

        return render(self.tokenizer, messages)

    def answer(self, prompts: list[list[int]], seeds: list[int]) -> list[Answer]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        ids, mask = _pad_left(prompts, pad=min(self.stops))
        draw = SeededDraw(seeds, ids.shape[1], self.sampling)
        settings = GenerationConfig(
            do_sample=False,  # the processor has already drawn: one finite logit a row is left
            max_new_tokens=self.sampling.max_new_tokens,
            eos_token_id=sorted(self.stops),
            pad_token_id=min(self.stops),
        )
        with torch.inference_mode():
            full = self.model.generate(
                inputs=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([draw]),
            )
        return [self._answer(row) for row in full[:, ids.shape[1] :].tolist()]

    def _answer(self, sampled: list[int]) -> Answer:
        end = next((i for i, token in enumerate(sampled) if token in self.stops), None)
        ids = sampled if end is None else sampled[: end + 1]
        text = self.tokenizer.decode(ids if end is None else ids[:-1], skip_special_tokens=True)
        return Answer(str(text), ids, "length" if end is None else "stop")


class SeededDraw:
    """Logits processor that draws the next token itself, from a random stream of each row's own.

    Step t of a row uses the t-th uniform of its seed: inverse-CDF sampling over the nucleus, so a row's tokens do not
    depend on its neighbours (beyond the rounding of a differently shaped matrix product).
    """

    def __init__(self, seeds: list[int], prompt_length: int, sampling: Sampling) -> None:
        import torch

        draws = [
            torch.rand(sampling.max_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        ]
        self.uniforms = torch.stack(draws)
        self.prompt_length = prompt_length
        self.sampling = sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        import torch

        step = input_ids.shape[1] - self.prompt_length
        tokens = draw(scores.float() / self.sampling.temperature, self.sampling.top_p, self.uniforms[:, step])
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


def draw(logits: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """Token ids (row,) drawn from softmax(`logits` (row, vocab)) cut to its nucleus, one uniform in [0, 1) a row.

    The nucleus is the smallest set of most likely tokens whose mass reaches `top_p`. A row's token depends on nothing
    but that row: whether the shortcut serves is decided row by row, for the two orders break ties differently.
    """

    if top_p < 1 and logits.shape[1] > FEW:
        order = logits.topk(FEW, dim=-1).indices
        mass = logits.softmax(-1).gather(1, order).double()
        tokens = _walk(mass, order, top_p, uniform)
        short = mass.sum(-1) <= top_p + 1e-4
        if bool(short.any()):
            tokens[short] = _draw_sorted(logits[short], top_p, uniform.to(logits.device)[short])
        return tokens
    return _draw_sorted(logits, top_p, uniform)


FEW = 512
"""Likeliest tokens that hold the nucleus of nearly every row, so that the vocabulary need not be sorted."""


def _draw_sorted(logits: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    import torch

    values, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    return _walk(values.double().softmax(-1), order, top_p, uniform)


def _walk(mass: Tensor, order: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """Inverse CDF over falling masses (row, token), fp64, cut at the nucleus."""
    import torch

    if top_p < 1:
        mass = torch.where(mass.cumsum(-1) - mass < top_p, mass, 0.0)
    cdf = mass.cumsum(-1)
    target = (uniform.to(cdf.device) * cdf[:, -1])[:, None]
    last = (mass > 0).sum(-1, keepdim=True) - 1
    chosen = torch.searchsorted(cdf, target, right=True).minimum(last)
    return order.gather(1, chosen).squeeze(1)


def _pad_left(prompts: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask
