"""The LM head and the log-softmax in one function that never holds `[tokens, vocabulary]` logits.

With z = softcap(W h), log pi(y) = z_y - lse(z). Backward recomputes z chunk by chunk from h and the stored lse:
d log pi(y) / d z_v = [v = y] - exp(z_v - lse), then through the soft-cap (1 - (z/cap)^2) to h and W. docs/trainer.md.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Alignment = Literal["none", "sampled", "greedy"]


def token_logps(
    hidden: Float[Tensor, "token width"],
    labels: Int[Tensor, " token"],
    weight: Float[Tensor, "vocab width"],
    softcap: float | None,
    alignment: Alignment,
    chunk: int,
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """Return log pi(label) of every token, and its WPO log-weight without gradient.

    fp32, nats. `chunk` tokens meet the vocabulary at a time. Products run in autocast's dtype where it is on.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    with torch.autocast(kind, enabled=False):
        logp, log_weight = _ChunkedHead.apply(hidden.to(dtype), weight, labels, softcap, alignment, chunk)  # pyright: ignore
    return logp, log_weight


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        softcap: float | None,
        alignment: Alignment,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        cast = weight.to(hidden.dtype)
        logp, lse, log_weight = (hidden.new_zeros(len(labels), dtype=torch.float32) for _ in range(3))
        for start in range(0, len(labels), chunk):
            part = slice(start, start + chunk)
            logits = capped_logits(hidden[part], cast, softcap)
            lse[part] = logits.logsumexp(-1)
            logp[part] = logits.gather(-1, labels[part, None]).squeeze(-1) - lse[part]
            log_weight[part] = logp[part] - _alignment_norm(logits, lse[part], alignment)
        ctx.save_for_backward(hidden, weight, labels, lse)
        ctx.softcap, ctx.chunk = softcap, chunk
        ctx.mark_non_differentiable(log_weight)
        return logp, log_weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, lse = ctx.saved_tensors
        cast = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(labels), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            grad_logits = _grad_logits(hidden[part], cast, labels[part], lse[part], grads[0][part], ctx.softcap)
            if grad_hidden is not None:
                grad_hidden[part] = grad_logits @ cast
            if grad_weight is None:
                continue
            if hidden.dtype == torch.float32:
                grad_weight.addmm_(grad_logits.T, hidden[part])
            elif hidden.is_cuda:
                torch.addmm(grad_weight, grad_logits.T, hidden[part], out_dtype=torch.float32, out=grad_weight)
            else:
                grad_weight.add_(grad_logits.T @ hidden[part])
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None


def capped_logits(
    hidden: Float[Tensor, "token width"], weight: Float[Tensor, "vocab width"], softcap: float | None
) -> Float[Tensor, "token vocab"]:
    """Return logits in fp32; on CUDA they are not even rounded to bf16 on the way."""
    if hidden.is_cuda and hidden.dtype != torch.float32:
        logits = torch.mm(hidden, weight.T, out_dtype=torch.float32)
    else:
        logits = (hidden @ weight.T).float()
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _grad_logits(
    hidden: Tensor, weight: Tensor, labels: Tensor, lse: Tensor, grad: Tensor, softcap: float | None
) -> Tensor:
    """Return d sum(grad * logp) / d logits, the logits before the soft-cap; in the dtype of `hidden`."""
    logits = capped_logits(hidden, weight, softcap)
    slope = None if softcap is None else (logits / softcap).square_().neg_().add_(1)
    grad_logits = logits.sub_(lse[:, None]).exp_().mul_(-grad[:, None])
    grad_logits.scatter_add_(1, labels[:, None], grad[:, None])
    return (grad_logits if slope is None else grad_logits.mul_(slope)).to(hidden.dtype)


def _alignment_norm(logits: Tensor, lse: Tensor, alignment: Alignment) -> Tensor | float:
    """Return log sum_v pi(v)^2 (sampled), log max_v pi(v) (greedy), or 0 (none); arXiv:2406.11827 §3.2."""
    if alignment == "none":
        return 0.0
    if alignment == "sampled":
        return (2 * logits).logsumexp(-1) - 2 * lse
    return logits.amax(-1) - lse
