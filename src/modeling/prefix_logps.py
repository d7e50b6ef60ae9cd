"""Score many answers to few prompts: the prompt is computed once, its keys and values serve all its answers."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from src.modeling.chunked_head import token_logps
from src.modeling.logps import head_of

Ids = list[int]


@torch.inference_mode()
def prefix_shared_logps(model: PreTrainedModel, prompts: list[Ids], answers: list[list[Ids]]) -> list[list[float]]:
    """log p(answer | prompt), nats, summed over tokens; `answers[i]` are those of `prompts[i]`.

    Prompts need two tokens at least; an empty answer scores 0.
    """
    owner = torch.tensor([i for i, some in enumerate(answers) for _ in some], device=model.device)
    starts = [[prompts[i][-1], *answer] for i, some in enumerate(answers) for answer in some]
    cache, prefix_mask = _prefill(model, [prompt[:-1] for prompt in prompts])
    cache.batch_select_indices(owner)
    ids, mask = _pad(starts, model.device, left=False)
    full_mask = torch.cat([prefix_mask[owner], mask], 1)
    hidden = model.base_model(
        input_ids=ids,
        attention_mask=full_mask,
        position_ids=_positions(full_mask)[:, -ids.shape[1] :],
        past_key_values=cache,
    )[0]
    predicted = mask[:, 1:].bool()
    logp, _ = token_logps(hidden[:, :-1][predicted], ids[:, 1:][predicted], *head_of(model), "none", 512)
    row = torch.arange(len(ids), device=ids.device)[:, None].expand_as(predicted)[predicted]
    flat = iter(logp.new_zeros(len(ids)).index_add(0, row, logp).tolist())
    return [[next(flat) for _ in some] for some in answers]


def _prefill(model: PreTrainedModel, prefixes: list[Ids]) -> tuple[DynamicCache, Tensor]:
    """Keys and values of left-padded prefixes, and their mask (prompt, prefix)."""
    ids, mask = _pad(prefixes, model.device, left=True)
    cache = DynamicCache(config=model.config)
    model.base_model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=_positions(mask),
        past_key_values=cache,
        use_cache=True,
    )
    return cache, mask


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def _pad(sequences: list[Ids], device: torch.device, left: bool) -> tuple[Tensor, Tensor]:
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[i, place] = torch.tensor(sequence)
        mask[i, place] = 1
    return ids.to(device), mask.to(device)
