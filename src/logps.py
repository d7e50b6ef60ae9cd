"""Log-probabilities of answers in one forward pass: only answer positions meet the LM head, a chunk at a time.

The `[tokens, vocabulary]` logits never exist as a whole: each chunk is recomputed in the backward pass.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

Alignment = Literal["none", "sampled", "greedy"]


class Rows(NamedTuple):
    """Padded rows `prompt + answer`."""

    input_ids: Int[Tensor, "row seq"]
    attention_mask: Int[Tensor, "row seq"]
    answer_mask: Bool[Tensor, "row seq"]
    """True at the tokens of the answer, its EOS included."""


def pad_rows(sequences: list[tuple[list[int], list[int]]]) -> Rows:
    """(prompt, answer) id lists as right-padded rows."""
    width = max(len(prompt) + len(answer) for prompt, answer in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask, answers = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(sequences):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        mask[i, :end] = 1
        answers[i, len(prompt) : end] = True
    return Rows(ids, mask, answers)


class AnswerLogps(NamedTuple):
    """Sums over the tokens of each answer, fp32."""

    logp: Float[Tensor, " row"]
    """log pi(y|x), nats."""
    tokens: Float[Tensor, " row"]
    """Answer length, tokens."""
    log_weight: Float[Tensor, " row"]
    """Mean log-weight of WPO (arXiv:2406.11827 §3.2), without gradient; zeros for alignment "none"."""


def answer_logps(model: PreTrainedModel, rows: Rows, alignment: Alignment = "none", chunk: int = 512) -> AnswerLogps:
    """Log-probabilities of the answers of `rows` under `model`; `chunk` answer tokens meet the head at a time."""
    hidden = hidden_states(model, rows.input_ids, rows.attention_mask)
    predicts = rows.answer_mask[:, 1:]  # position t-1 predicts token t
    logp, log_weight = token_logps(
        hidden[:, :-1][predicts], rows.input_ids[:, 1:][predicts], *head_of(model), alignment, chunk
    )
    row = torch.arange(len(predicts), device=predicts.device)[:, None].expand_as(predicts)[predicts]
    tokens = predicts.sum(1).float()
    return AnswerLogps(
        logp=logp.new_zeros(len(tokens)).index_add(0, row, logp),
        tokens=tokens,
        log_weight=log_weight.new_zeros(len(tokens)).index_add(0, row, log_weight) / tokens,
    )


def hidden_states(
    model: PreTrainedModel, input_ids: Int[Tensor, "row seq"], attention_mask: Int[Tensor, "row seq"]
) -> Float[Tensor, "row seq width"]:
    """Last hidden states, before the LM head."""
    return model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]


def head_of(model: PreTrainedModel) -> tuple[Tensor, float | None]:
    """The LM head's weight (vocab, width) and the final logit soft-cap, if the architecture has one."""
    head: Any = model.get_output_embeddings()
    return head.weight, getattr(model.config, "final_logit_softcapping", None)


def token_logps(
    hidden: Float[Tensor, "token width"],
    labels: Int[Tensor, " token"],
    weight: Float[Tensor, "vocab width"],
    softcap: float | None,
    alignment: Alignment,
    chunk: int,
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """log pi(label) of every token, and its WPO log-weight (zeros for alignment "none")."""
    parts = [
        checkpoint(_chunk_logps, h, y, weight, softcap, alignment, use_reentrant=False)
        for h, y in zip(hidden.split(chunk), labels.split(chunk), strict=True)
    ]
    logp, log_weight = zip(*parts, strict=True)
    return torch.cat(logp), torch.cat(log_weight)


def _chunk_logps(
    hidden: Tensor, labels: Tensor, weight: Tensor, softcap: float | None, alignment: Alignment
) -> tuple[Tensor, Tensor]:
    logits = capped_logits(hidden, weight, softcap)
    lse = logits.logsumexp(-1)
    logp = logits.gather(-1, labels[:, None]).squeeze(-1) - lse
    with torch.no_grad():
        return logp, logp.detach() - _alignment_norm(logits.detach(), lse.detach(), alignment, logp.detach())


def capped_logits(hidden: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
    """fp32 logits (token, vocab)."""
    logits = (hidden @ weight.T).float()
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _alignment_norm(logits: Tensor, lse: Tensor, alignment: Alignment, logp: Tensor) -> Tensor:
    """log sum_v pi(v)^2 (sampled), log max_v pi(v) (greedy), or log pi itself, which makes every weight 1."""
    if alignment == "sampled":
        return (2 * logits).logsumexp(-1) - 2 * lse
    if alignment == "greedy":
        return logits.amax(-1) - lse
    return logp


def bind_forward(model: PreTrainedModel, alignment: Alignment, chunk: int) -> None:
    """Make `model(rows)` return AnswerLogps.

    Everything that wraps a model (DDP, DeepSpeed, autocast) hooks on its forward, so the head has to be used inside.
    """

    def forward(rows: Rows, **_: Any) -> AnswerLogps:
        return answer_logps(model, rows, alignment, chunk)

    model.forward = forward
