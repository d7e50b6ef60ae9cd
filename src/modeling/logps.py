"""Log-probabilities of answers in one forward pass over a packed row; only answer positions meet the LM head."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from src.modeling.chunked_head import Alignment, token_logps
from src.modeling.model import AttentionKind
from src.modeling.packed import Packed
from src.modeling.packed_attention import layout_of, use_packed_attention


class AnswerLogps(NamedTuple):
    """Sums over the tokens of each of the A answers of a row, in its order; fp32."""

    logp: Float[Tensor, " answer"]
    """log pi(y|x), nats."""
    tokens: Float[Tensor, " answer"]
    """Answer length, tokens."""
    log_weight: Float[Tensor, " answer"]
    """Mean log-weight of WPO (arXiv:2406.11827 §3.2), without gradient; zeros for alignment "none"."""


def make_scorer(model: PreTrainedModel) -> PreTrainedModel:
    """Let `model` score packed rows, and do nothing else any more: its LM head takes labels.

    The head is called as a module, so that DeepSpeed's hooks gather its weight once a pass, not once a chunk.
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
    """Log-probabilities of the answers of `packed` under a scorer; `chunk` answer tokens meet the head at a time."""
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
    """Last hidden states, before the LM head, that predict the answer tokens of `packed`."""
    hidden = model.base_model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        use_cache=False,
        layout=layout_of(packed, attention),
    )[0]
    return hidden[0, packed.predictors]


def head_of(model: PreTrainedModel) -> tuple[Tensor, float | None]:
    """The LM head's weight (vocab, width) and the final logit soft-cap, if the architecture has one."""
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
