"""The transformers engine: padded batches that shrink as answers end, every answer with a random stream of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from src.config import Device, Free, config
from src.generation.stage import Answer, Sampler, Sampling
from src.model import Attention, Precision

if TYPE_CHECKING:
    from torch import Tensor


@config
class TransformersEngine:
    """How answers are sampled on one device."""

    dtype: Precision
    batch_answers: Free[PositiveInt]
    """Answers sampled side by side."""
    device: Free[Device]
    attention: Attention | None
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
        uniforms = seeded_uniforms(seeds, self.sampling.max_new_tokens)
        return [self._answer(ids) for ids in self._decode(prompts, uniforms)]

    def _decode(self, prompts: list[list[int]], uniforms: Tensor) -> list[list[int]]:
        """Sampled ids of each prompt. Step t of a row uses its t-th uniform; finished rows leave the batch."""
        import torch
        from transformers import DynamicCache

        device = self.model.device
        ids, mask = (t.to(device) for t in _pad_left(prompts, pad=min(self.stops)))
        cache = DynamicCache(config=self.model.config)
        sampled: list[list[int]] = [[] for _ in prompts]
        rows = torch.arange(len(prompts), device=device)  # of the batch, as numbers of prompts
        with torch.inference_mode():
            for step in range(self.sampling.max_new_tokens):
                logits = self._next_logits(ids, mask, cache)
                tokens = draw(logits, self.sampling.top_p, uniforms[rows.cpu(), step])
                alive = _record(tokens.tolist(), rows.tolist(), sampled, self.stops)
                if not any(alive):
                    break
                ids, mask = tokens[:, None], torch.nn.functional.pad(mask, (0, 1), value=1)
                if sum(alive) <= KEPT_SHARE * len(alive):
                    stay = torch.tensor([i for i, goes_on in enumerate(alive) if goes_on], device=device)
                    cache.batch_select_indices(stay)
                    ids, mask, rows = ids[stay], mask[stay], rows[stay]
        return sampled

    def _next_logits(self, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """fp32 logits (row, vocab) of the next token, divided by the temperature."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float() / self.sampling.temperature

    def _answer(self, sampled: list[int]) -> Answer:
        end = next((i for i, token in enumerate(sampled) if token in self.stops), None)
        ids = sampled if end is None else sampled[: end + 1]
        text = self.tokenizer.decode(ids if end is None else ids[:-1], skip_special_tokens=True)
        return Answer(str(text), ids, "length" if end is None else "stop")


KEPT_SHARE = 0.9
"""Rows leave the batch when this share or less of them goes on: copying the cache at every end would cost more."""


def seeded_uniforms(seeds: list[int], count: int) -> Tensor:
    """fp64 uniforms in [0, 1), (seed, count): a stream of its own for each answer, whatever it is batched with."""
    import torch

    return torch.stack(
        [torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    )


def _record(tokens: list[int], rows: list[int], sampled: list[list[int]], stops: set[int]) -> list[bool]:
    """Add a token to every answer that has not ended; returns which of the batch's rows go on."""
    for row, token in zip(rows, tokens, strict=True):
        if not (sampled[row] and sampled[row][-1] in stops):
            sampled[row].append(token)
    return [sampled[row][-1] not in stops for row in rows]


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
