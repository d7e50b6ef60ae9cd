"""The LM head in chunks against whole logits, and answers that share a prompt's cache against answer by answer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from answer_twin import answer_by_answer, assert_close, drawn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from src.modeling.head import token_logps
from src.modeling.logps import prefix_shared_logps
from src.modeling.packing import Group
from src.modeling.policy import load_policy


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_a_shared_prefix_scores_as_each_answer_by_itself(architecture: str, request: pytest.FixtureRequest) -> None:
    """Answers are 0 to 20 tokens, three to none a prompt; prompts and answers go beyond the window."""
    folder: Path = request.getfixturevalue(architecture)
    chance = random.Random(8)
    prompts = [drawn(chance, n) for n in (2, 40, 7, 19)]
    answers = [[drawn(chance, n) for n in some] for some in ([1, 18, 0], [20, 1], [], [5])]
    scores = prefix_shared_logps(load_policy(folder, "float32", "cpu"), prompts, answers)
    assert [len(some) for some in scores] == [3, 2, 0, 1] and scores[0].pop() == 0
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    groups = [Group(prompt, [a for a in some if a]) for prompt, some in zip(prompts, answers, strict=True)]
    with torch.no_grad():
        expected = answer_by_answer(plain, groups).logp
    assert_close(torch.tensor([score for some in scores for score in some]), expected, largest=1e-4, mean=1e-4)


TOKENS, WIDTH, VOCABULARY = 23, 12, 50


def states(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw hidden states, LM head and labels; logits are of some units."""
    torch.manual_seed(seed)
    hidden, weight = torch.randn(TOKENS, WIDTH), torch.randn(VOCABULARY, WIDTH)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(VOCABULARY, (TOKENS,))


def whole(hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None) -> Tensor:
    """Return log pi of the labels from whole logits, differentiated by autograd."""
    logits = hidden @ weight.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 4, 23, 1000])
def test_the_head_in_chunks_is_the_whole_head(softcap: float | None, chunk: int) -> None:
    """Upstream gradients have both signs, as a preference loss has them, and zeros."""
    hidden, weight, labels = states(0)
    twin_hidden, twin_weight = (t.detach().clone().requires_grad_() for t in (hidden, weight))
    upstream = torch.randn(TOKENS) * (torch.rand(TOKENS) > 0.2)
    logps, _ = token_logps(hidden, labels, weight, softcap, "none", chunk)
    expected = whole(twin_hidden, twin_weight, labels, softcap)
    (logps @ upstream).backward()
    (expected @ upstream).backward()
    for values, twin in ((logps, expected), (hidden.grad, twin_hidden.grad), (weight.grad, twin_weight.grad)):
        assert values is not None and twin is not None
        assert_close(values, twin, largest=2e-5, mean=2e-6)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))])
        return result


@pytest.mark.parametrize("alignment", ["none", "sampled", "greedy"])
def test_no_tensor_is_larger_than_a_chunk_of_logits_or_the_head(alignment: Any) -> None:
    """Forward and backward; the whole logits would be 23 x 50."""
    hidden, weight, labels = states(6)
    with Largest() as largest:
        token_logps(hidden, labels, weight, 3.0, alignment, 4)[0].sum().backward()
    assert largest.elements == max(4 * VOCABULARY, VOCABULARY * WIDTH)
    with Largest() as largest:
        whole(hidden, weight, labels, 3.0).sum().backward()
    assert largest.elements == TOKENS * VOCABULARY
