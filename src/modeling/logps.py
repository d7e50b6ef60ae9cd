"""Log-probabilities of answers in one forward pass over a packed row; only answer positions meet the LM head."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from src.modeling.attention import layout_of, use_packed_attention
from src.modeling.head import Alignment, token_logps
from src.modeling.packing import Ids, Packed
from src.modeling.policy import AttentionKind


class AnswerLogps(NamedTuple):
    """Sums over the tokens of each of the A answers of a row, in its order; fp32."""

    logp: Float[Tensor, " answer"]
    """log pi(y|x), nats."""
    tokens: Float[Tensor, " answer"]
    """Answer length, tokens."""
    log_weight: Float[Tensor, " answer"]
    """Mean log-weight of WPO (arXiv:2406.11827 §3.2), without gradient; for alignment "none", log pi."""


def make_scorer(model: PreTrainedModel) -> PreTrainedModel:
    """Let `model` score packed rows, and do nothing else any more: its LM head takes labels.

    The head is called as a module, so that DeepSpeed's hooks gather its weight once per pass, not per chunk.
    Raises UserError for an architecture that is not supported.
    """
    use_packed_attention(model)
    head: Any = model.get_output_embeddings()
    _, softcap = head_of(model)

    def forward(hidden: Tensor, labels: Tensor, alignment: Alignment, chunk: int) -> tuple[Tensor, Tensor]:
        return token_logps(hidden, labels, head.weight, softcap, alignment, chunk)

    head.forward = forward
    return model


def answer_logps(
    model: PreTrainedModel,
    packed: Packed,
    alignment: Alignment = "none",
    chunk: int = 512,
    attention: AttentionKind = "segments",
) -> AnswerLogps:
    """Score the answers of `packed` with a model from `make_scorer`; `chunk` answer tokens meet the head at a time."""
    head: Any = model.get_output_embeddings()
    logp, log_weight = head(answer_states(model, packed, attention), packed.labels, alignment, chunk)
    tokens = torch.bincount(packed.owners).float()
    return AnswerLogps(
        logp=logp.new_zeros(len(tokens)).index_add(0, packed.owners, logp),
        tokens=tokens,
        log_weight=log_weight.new_zeros(len(tokens)).index_add(0, packed.owners, log_weight) / tokens,
    )


def answer_states(
    model: PreTrainedModel, packed: Packed, attention: AttentionKind = "segments"
) -> Float[Tensor, "token width"]:
    """Return the last hidden states, before the LM head, that predict the answer tokens of `packed`."""
    row: dict[str, Any] = {"input_ids": packed.input_ids, "position_ids": packed.position_ids}
    hidden = model.base_model(**row, use_cache=False, layout=layout_of(packed, attention))[0]
    return hidden[0, packed.predictors]


def head_of(model: PreTrainedModel) -> tuple[Tensor, float | None]:
    """Return the LM head's weight (vocab, width) and the final logit soft-cap, if the architecture has one."""
    head: Any = model.get_output_embeddings()
    return head.weight, getattr(model.config, "final_logit_softcapping", None)


def bind_forward(model: PreTrainedModel, alignment: Alignment, chunk: int, attention: AttentionKind) -> None:
    """Make `model(packed)` return AnswerLogps; `model` becomes a scorer.

    Everything that wraps a model (DeepSpeed, autocast) hooks on its forward, so the head has to be used inside.
    """
    make_scorer(model)

    def forward(packed: Packed, **_: Any) -> AnswerLogps:
        return answer_logps(model, packed, alignment, chunk, attention)

    model.forward = forward


@torch.inference_mode()
def prefix_shared_logps(model: PreTrainedModel, prompts: list[Ids], answers: list[list[Ids]]) -> list[list[float]]:
    """Return log p(answer | prompt), nats, summed over tokens; `answers[i]` are those of `prompts[i]`.

    Prompts need two tokens at least; an empty answer scores 0.
    """
    # Keys and values of the prompts but for their last tokens, padded on the left.
    ids, mask = _pad([prompt[:-1] for prompt in prompts], model.device, left=True)
    cache = DynamicCache(config=model.config)
    positions = _positions(mask)
    model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    # Every answer behind the last token of its prompt, padded on the right.
    owner = torch.tensor([i for i, some in enumerate(answers) for _ in some], device=model.device)
    cache.batch_select_indices(owner)
    starts = [[prompts[i][-1], *answer] for i, some in enumerate(answers) for answer in some]
    ids, answer_mask = _pad(starts, model.device, left=False)
    mask = torch.cat([mask[owner], answer_mask], 1)
    positions = _positions(mask)[:, -ids.shape[1] :]
    hidden = model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache)[0]
    predicted = answer_mask[:, 1:].bool()
    logp, _ = token_logps(hidden[:, :-1][predicted], ids[:, 1:][predicted], *head_of(model), "none", 512)
    row = torch.arange(len(ids), device=ids.device)[:, None].expand_as(predicted)[predicted]
    flat = iter(logp.new_zeros(len(ids)).index_add(0, row, logp).tolist())
    return [[next(flat) for _ in some] for some in answers]


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def _pad(sequences: list[Ids], device: torch.device, left: bool) -> tuple[Tensor, Tensor]:
    """Return ids and mask, (sequence, longest); 0 where there is padding."""
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[i, place] = torch.tensor(sequence)
        mask[i, place] = 1
    return ids.to(device), mask.to(device)
