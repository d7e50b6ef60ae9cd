"""The LM head in chunks against the whole log-softmax"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from padded_twin import assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from src.chunked_head import Alignment, capped_logits, token_logps

ALIGNMENTS: tuple[Alignment, ...] = ("none", "sampled", "greedy")
TOKENS, WIDTH, VOCABULARY = 23, 12, 50


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, LM head and labels; logits of some units."""
    torch.manual_seed(seed)
    hidden = torch.randn(TOKENS, WIDTH).to(dtype).requires_grad_()
    return hidden, torch.randn(VOCABULARY, WIDTH).to(dtype).requires_grad_(), torch.randint(VOCABULARY, (TOKENS,))


def whole(hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """log pi of the labels, and of every token of the vocabulary; differentiated by autograd."""
    logits = hidden @ weight.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    log_pi = logits.float().log_softmax(-1)
    return log_pi.gather(-1, labels[:, None]).squeeze(-1), log_pi


def test_values_and_gradients() -> None:
    for softcap, chunk in product((None, 3.0), (1, 4, 23, 1000)):
        check_values_and_gradients(softcap, chunk)


def check_values_and_gradients(softcap: float | None, chunk: int) -> None:
    """Upstream gradients of both signs, as a preference loss has them, and zeros."""
    hidden, weight, labels = drawn(0)
    twin_hidden, twin_weight = (t.detach().clone().requires_grad_() for t in (hidden, weight))
    upstream = torch.randn(TOKENS) * (torch.rand(TOKENS) > 0.2)
    got, _ = token_logps(hidden, labels, weight, softcap, "none", chunk)
    expected, _ = whole(twin_hidden, twin_weight, labels, softcap)
    assert_close(got, expected, largest=1e-5, mean=2e-6)
    (got @ upstream).backward()
    (expected @ upstream).backward()
    for found, twin in ((hidden.grad, twin_hidden.grad), (weight.grad, twin_weight.grad)):
        assert found is not None and twin is not None
        assert_close(found, twin, largest=2e-5, mean=2e-6)


def test_log_weights_are_the_papers_and_carry_no_gradient() -> None:
    hidden, weight, labels = drawn(2)
    for softcap, alignment in product((None, 3.0), ALIGNMENTS):
        logp, log_weight = token_logps(hidden, labels, weight, softcap, alignment, 5)
        expected, log_pi = whole(hidden, weight, labels, softcap)
        pi = log_pi.double().exp()
        norm = {"none": expected.double().exp(), "sampled": (pi**2).sum(-1), "greedy": pi.amax(-1)}[alignment]
        assert_close(log_weight, (expected - norm.log()).detach(), largest=1e-5, mean=2e-6)
        assert logp.requires_grad and not log_weight.requires_grad


def test_a_frozen_head_or_frozen_states_get_no_gradient() -> None:
    hidden, weight, labels = drawn(3)
    token_logps(hidden, labels, weight.detach(), 3.0, "none", 5)[0].sum().backward()
    assert hidden.grad is not None and weight.grad is None
    token_logps(hidden.detach(), labels, weight, 3.0, "none", 5)[0].sum().backward()
    assert weight.grad is not None


def test_a_tied_head_gets_both_gradients() -> None:
    """Embedding and LM head are one matrix: autograd adds what comes from either end."""
    _, weight, labels = drawn(4)
    inputs = labels.roll(1)
    (token_logps(weight[inputs], labels, weight, None, "none", 5)[0].sum()).backward()
    twin = weight.detach().clone().requires_grad_()
    whole(twin[inputs], twin, labels, None)[0].sum().backward()
    assert weight.grad is not None and twin.grad is not None
    assert_close(weight.grad, twin.grad, largest=2e-5, mean=2e-6)


@pytest.mark.full
def test_bf16_weights_and_products() -> None:
    """Products are rounded to 8 bits, sums over the vocabulary are not: the error stays that of one logit."""
    hidden, weight, labels = drawn(5, torch.bfloat16)
    twin_hidden, twin_weight = (t.detach().float().requires_grad_() for t in (hidden, weight))
    got, _ = token_logps(hidden, labels, weight, None, "none", 5)
    expected, _ = whole(twin_hidden, twin_weight, labels, None)
    assert got.dtype == torch.float32
    assert_close(got, expected, largest=0.06, mean=0.015)
    got.sum().backward()
    expected.sum().backward()
    for found, twin in ((hidden.grad, twin_hidden.grad), (weight.grad, twin_weight.grad)):
        assert found is not None and found.dtype == torch.bfloat16 and twin is not None
        assert (found.float() - twin).norm() / twin.norm() < 0.02


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in tree_leaves(found) if isinstance(t, Tensor))])
        return found


def test_no_tensor_is_larger_than_a_chunk_of_logits_or_the_head() -> None:
    """Forward and backward; the whole logits would be 23 x 50."""
    hidden, weight, labels = drawn(6)
    for alignment in ALIGNMENTS:
        with Largest() as largest:
            token_logps(hidden, labels, weight, 3.0, alignment, 4)[0].sum().backward()
        assert largest.elements == max(4 * VOCABULARY, VOCABULARY * WIDTH), alignment
    with Largest() as naive:
        whole(hidden, weight, labels, 3.0)[0].sum().backward()
    assert naive.elements == TOKENS * VOCABULARY


def test_capped_logits_stay_within_the_cap() -> None:
    hidden, weight, _ = drawn(7)
    logits = capped_logits(hidden.detach() * 100, weight.detach(), 3.0)
    assert logits.abs().max() <= 3.0
    torch.testing.assert_close(capped_logits(hidden, weight, None), hidden @ weight.T)
