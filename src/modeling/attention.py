"""Attention of packed rows: an answer sees its prompt and itself, a prompt sees itself, nothing sees another group.

`Segments` computes every group by itself (SDPA, or eager where scores are soft-capped): no mask is larger than a group.
`Flex` computes the whole row with one FlexAttention block mask: for CUDA. Both honour sliding windows and soft-caps.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from src.modeling.packing import Packed, Span, refuse_unpackable
from src.modeling.policy import AttentionKind

Queries = Float[Tensor, "1 head seq dim"]
Keys = Float[Tensor, "1 kv_head seq dim"]


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let `model` take packed rows. Raise UserError for a model that packing would compute differently."""
    refuse_unpackable(model.config.to_dict())
    model.set_attn_implementation("packed")


def _packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    layout: Any,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Serve the decoder layers of transformers, which want (1, seq, head, dim) back; `layout` attends."""
    return layout.attend(query, key, value, scaling, sliding_window, softcap).transpose(1, 2), None


AttentionInterface.register("packed", _packed_attention)


class Segments:
    """Attends group by group: the prompt with its first answer, then every other answer against prompt and itself."""

    def __init__(self, spans: tuple[Span, ...]) -> None:
        self.spans = spans
        self.masks: dict[tuple[int, int, int | None], Tensor] = {}

    def attend(
        self, query: Queries, key: Keys, value: Keys, scaling: float, window: int | None, softcap: float | None
    ) -> Queries:
        """Return the attention of the whole row. `window`: how many tokens a token sees, itself included; None: all."""
        sizes = [size for prompt, answers in self.spans for size in (prompt + sum(answers[:1]), *answers[1:])]
        parts = zip(*(states.split(sizes, 2) for states in (query, key, value)), strict=True)
        done = []
        for prompt, answers in self.spans:
            q, k, v = next(parts)
            done.append(self._attend_one(q, k, v, 0, scaling, window, softcap))
            prompt_k, prompt_v = k[:, :, :prompt], v[:, :, :prompt]
            for _ in answers[1:]:
                q, k, v = next(parts)
                k, v = torch.cat((prompt_k, k), 2), torch.cat((prompt_v, v), 2)
                if q.shape[2]:
                    done.append(self._attend_one(q, k, v, prompt, scaling, window, softcap))
        return torch.cat(done, 2)

    def _attend_one(
        self, query: Tensor, key: Tensor, value: Tensor, first: int, scale: float, window: int | None, cap: float | None
    ) -> Tensor:
        """Attend from positions `first`, `first` + 1, ... to keys at positions 0, 1, ..."""
        length = key.shape[2]
        window = None if window is None or window >= length else window
        if cap is None and window is None and first == 0:
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
        # A mask is built once: it is the same in every layer of a pass.
        if (place := (first, length, window)) not in self.masks:
            self.masks[place] = visible(first, length, window).to(query.device)
        mask = self.masks[place]
        if cap is None:
            return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
        # Scores are soft-capped before the mask, as in Gemma-2; SDPA cannot.
        shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        scores = cap * torch.tanh(query @ key.transpose(2, 3) * scale / cap)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1, dtype=torch.float32)
        return weights.to(query.dtype) @ value


def visible(first: int, length: int, window: int | None) -> Bool[Tensor, "query key"]:
    """Say which of positions 0 .. length-1 those from `first` on see: themselves and up to `window` - 1 before."""
    query, key = torch.arange(first, length)[:, None], torch.arange(length)
    seen = key <= query
    return seen if window is None else seen & (query - key < window)


class Flex:
    """Attends over the whole row at once. Layers share one block mask per window size, built once per pass."""

    def __init__(self, packed: Packed) -> None:
        device, length = packed.input_ids.device, packed.input_ids.shape[1]
        group, part = [], []
        for number, (prompt, answers) in enumerate(packed.spans):
            group += [number] * (prompt + sum(answers))
            part += [0] * prompt
            for answer_number, answer in enumerate(answers, start=1):
                part += [answer_number] * answer
        filler = length - len(group)
        # int32: the mask's construction holds (length, length) tensors of their type for a moment
        self.group = torch.tensor(group + [-1] * filler, device=device, dtype=torch.int32)
        self.part = torch.tensor(part + [0] * filler, device=device, dtype=torch.int32)
        self.position = packed.position_ids[0].int()
        self.masks: dict[int | None, BlockMask] = {}

    def attend(
        self, query: Queries, key: Keys, value: Keys, scaling: float, window: int | None, softcap: float | None
    ) -> Queries:
        """Return the attention of the whole row, as `Segments.attend`."""

        def capped(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return score if softcap is None else softcap * torch.tanh(score / softcap)

        kind = query.device.type
        if torch.is_autocast_enabled(kind):  # rotary embeddings leave queries and keys in fp32, values are not
            query, key, value = (states.to(torch.get_autocast_dtype(kind)) for states in (query, key, value))
        options = {"score_mod": None if softcap is None else capped, "block_mask": self._mask(window), "scale": scaling}
        return flex_kernel(kind)(query, key, value, enable_gqa=query.shape[1] != key.shape[1], **options)

    def _mask(self, window: int | None) -> BlockMask:
        group, part, position, length = self.group, self.part, self.position, len(self.position)
        window = None if window is None or window >= length else window

        def seen(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            same = (group[q] == group[k]) & ((part[k] == 0) | (part[k] == part[q])) & (k <= q)
            return same if window is None else same & (position[q] - position[k] < window)

        if window not in self.masks:
            self.masks[window] = create_block_mask(seen, None, None, length, length, device=str(position.device))
        return self.masks[window]


def layout_of(packed: Packed, kind: AttentionKind) -> Segments | Flex:
    return Segments(packed.spans) if kind == "segments" else Flex(packed)


@cache
def flex_kernel(device: str) -> Any:
    """Compile FlexAttention on CUDA, where the eager form would build all scores; never fall back to it."""
    if device != "cuda":
        return flex_attention
    # One kernel per length, window and soft-cap; beyond the default of 8, Dynamo would silently run the eager form.
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 64)
    dynamo.fail_on_recompile_limit_hit = True
    return torch.compile(flex_attention, dynamic=False)
