"""Answer log-probabilities of whole policies, and of the LM head in chunks."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from padded_twin import assert_close, drawn, odd_groups, padded_token_logps
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedModel

from src.modeling.head import Alignment, token_logps
from src.modeling.logps import answer_logps, make_scorer, prefix_shared_logps
from src.modeling.packing import Group, pack
from src.modeling.policy import load_policy

ALIGNMENTS: tuple[Alignment, ...] = ("none", "sampled", "greedy")


@pytest.fixture(scope="module", params=["llama", "mistral", "gemma2"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def model(folder: Path) -> PreTrainedModel:
    return make_scorer(load_policy(folder, "float32", "cpu"))


def test_a_policy_scores_as_anyone_else_would_load_it(model: PreTrainedModel, folder: Path) -> None:
    """Eager attention honours windows and soft-caps by definition."""
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    groups = odd_groups(0)
    lengths = [len(answer) for group in groups for answer in group.answers]
    with torch.no_grad():
        got = answer_logps(model, pack(groups), chunk=7)
        expected = torch.stack([part.sum() for part in padded_token_logps(plain, groups).split(lengths)])
    assert_close(got.logp, expected, largest=2e-4, mean=4e-5)
    assert all(value.dtype == torch.float32 for value in got)


def test_training_mode_does_not_matter(gemma2: Path) -> None:
    """Nor is there a cache in evaluation mode, where transformers keeps one unless it is asked not to."""
    model = make_scorer(load_policy(gemma2, "float32", "cpu"))
    packed, caches = pack(odd_groups(4)), []
    model.base_model.register_forward_hook(lambda module, inputs, out: caches.append(out.past_key_values))
    with torch.no_grad():
        expected = answer_logps(model.eval(), packed).logp
        assert_close(answer_logps(model.train(), packed).logp, expected, largest=1e-4, mean=2e-5)
    assert caches == [None, None]


# Shared prefixes


def test_a_shared_prefix_scores_as_each_answer_by_itself(folder: Path, model: PreTrainedModel) -> None:
    """Ragged K, a prompt without answers, empty and one-token answers, prompts beyond the window."""
    chance = random.Random(8)
    prompts = [drawn(chance, n) for n in (2, 40, 7, 19)]
    answers = [[drawn(chance, n) for n in some] for some in ([1, 18, 0], [20, 1], [], [5])]
    got = prefix_shared_logps(load_policy(folder, "float32", "cpu"), prompts, answers)
    assert [len(some) for some in got] == [3, 2, 0, 1]
    assert got[0][2] == 0
    for prompt, some, scores in zip(prompts, answers, got, strict=True):
        for answer, score in zip(some, scores, strict=True):
            if answer:
                with torch.no_grad():
                    expected = answer_logps(model, pack([Group(prompt, [answer])])).logp
                assert_close(torch.tensor([score]), expected, largest=1e-4, mean=1e-4)


TOKENS, WIDTH, VOCABULARY = 23, 12, 50


def states(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
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
    hidden, weight, labels = states(0)
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
    hidden, weight, labels = states(2)
    for softcap, alignment in product((None, 3.0), ALIGNMENTS):
        logp, log_weight = token_logps(hidden, labels, weight, softcap, alignment, 5)
        expected, log_pi = whole(hidden, weight, labels, softcap)
        pi = log_pi.double().exp()
        norm = {"none": expected.double().exp(), "sampled": (pi**2).sum(-1), "greedy": pi.amax(-1)}[alignment]
        assert_close(log_weight, (expected - norm.log()).detach(), largest=1e-5, mean=2e-6)
        assert logp.requires_grad and not log_weight.requires_grad


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
    hidden, weight, labels = states(6)
    for alignment in ALIGNMENTS:
        with Largest() as largest:
            token_logps(hidden, labels, weight, 3.0, alignment, 4)[0].sum().backward()
        assert largest.elements == max(4 * VOCABULARY, VOCABULARY * WIDTH), alignment
    with Largest() as naive:
        whole(hidden, weight, labels, 3.0)[0].sum().backward()
    assert naive.elements == TOKENS * VOCABULARY
