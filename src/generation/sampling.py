"""Drawing tokens: a row's token depends on nothing but that row's logits and its own random number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FEW = 512
"""Likeliest tokens that hold the nucleus of nearly every row, so that the vocabulary need not be sorted."""


def seeded_uniforms(seed: int, count: int) -> Tensor:
    """Draw `count` fp64 uniforms in [0, 1): the stream of one answer, whatever it is batched with."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def penalised(logits: Tensor, answers: Sequence[list[int]], presence: float, frequency: float) -> Tensor:
    """Subtract from logits (row, vocab) the penalties of the tokens that the row's answer has so far; fp32."""
    rows = torch.tensor([row for row, answer in enumerate(answers) for _ in answer], dtype=torch.long)
    tokens = torch.tensor([token for answer in answers for token in answer], dtype=torch.long)
    places, counts = torch.stack([rows, tokens]).unique(dim=1, return_counts=True)
    row, token = places.to(logits.device)
    counts, lowered = counts.to(logits.device), logits.float().clone()
    lowered[row, token] = lowered[row, token] - frequency * counts - presence
    return lowered


def draw(logits: Tensor, temperature: float, top_p: float, uniform: Tensor, top_k: int | None = None) -> Tensor:
    """Draw token ids (row,) from softmax(`logits` (row, vocab) / `temperature`) cut to its nucleus, a uniform a row.

    Before that it is cut to the `top_k` likeliest tokens, and those that are as likely as the last of them. The
    nucleus is the smallest set of most likely tokens whose mass, of what is left, reaches `top_p`. Whether a
    shortcut serves is decided row by row: two orders break ties differently. Temperature 0 takes the likeliest token.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits, uniform = logits.float() / temperature, uniform.to(logits.device)
    if top_k is not None and top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=-1).values[:, -1:], -math.inf)
    if top_p == 1:
        return _inverse_cdf(logits.double().softmax(-1), uniform)
    if logits.shape[1] <= FEW:
        return _draw_sorted(logits, top_p, uniform)
    order = logits.topk(FEW, dim=-1).indices
    mass = logits.softmax(-1).gather(1, order).double()
    tokens = _walk(mass, order, top_p, uniform)
    short = mass.sum(-1) <= top_p + 1e-4
    if bool(short.any()):
        tokens[short] = _draw_sorted(logits[short], top_p, uniform[short])
    return tokens


def _draw_sorted(logits: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    values, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    return _walk(values.double().softmax(-1), order, top_p, uniform)


def _walk(mass: Tensor, order: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """Invert the CDF over falling masses (row, token), fp64, cut at the nucleus."""
    mass = torch.where(mass.cumsum(-1) - mass < top_p, mass, 0.0)
    return order.gather(1, _inverse_cdf(mass, uniform)[:, None]).squeeze(1)


def _inverse_cdf(mass: Tensor, uniform: Tensor) -> Tensor:
    """Return the first mass beyond the share `uniform` of the total; never one of no mass."""
    cdf = mass.cumsum(-1)
    target = (uniform * cdf[:, -1])[:, None]
    places = torch.arange(mass.shape[1], device=mass.device)
    last = torch.where(mass > 0, places, 0).amax(-1, keepdim=True)
    return torch.searchsorted(cdf, target, right=True).minimum(last).squeeze(1)
