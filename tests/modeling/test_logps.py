"""Answer log-probabilities of whole policies, as stages use them"""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import pytest
import torch
from padded_twin import assert_close, drawn, odd_groups, padded_token_logps
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from src.chunked_head import Alignment
from src.config import UserError
from src.logps import answer_logps, make_scorer
from src.model import load_policy
from src.packed import Group, pack
from src.prefix_logps import prefix_shared_logps

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


def test_the_chunk_size_does_not_matter(gemma2: Path) -> None:
    model = make_scorer(load_policy(gemma2, "float32", "cpu"))
    packed = pack(odd_groups(3))
    for alignment, chunk in product(ALIGNMENTS, (1, 10_000)):
        with torch.no_grad():
            found, expected = (answer_logps(model, packed, alignment, size) for size in (chunk, 4))
        for got, other in zip(found, expected, strict=True):
            assert_close(got, other, largest=2e-4, mean=4e-5)


def test_training_mode_does_not_matter(gemma2: Path) -> None:
    """Nor is there a cache in evaluation mode, where transformers keeps one unless it is asked not to."""
    model = make_scorer(load_policy(gemma2, "float32", "cpu"))
    packed, caches = pack(odd_groups(4)), []
    model.base_model.register_forward_hook(lambda module, inputs, out: caches.append(out.past_key_values))
    with torch.no_grad():
        expected = answer_logps(model.eval(), packed).logp
        assert_close(answer_logps(model.train(), packed).logp, expected, largest=1e-4, mean=2e-5)
    assert caches == [None, None]


def test_what_was_never_checked_is_refused() -> None:
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ids = {"vocab_size": 8, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    for settings, said in (
        ({"model_type": "qwen2"}, "qwen2"),
        ({"model_type": "llama", "attention_dropout": 0.1}, "attention dropout"),
        ({"model_type": "llama", "rope_parameters": rope}, "dynamic rotary embeddings"),
    ):
        other = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings, **shape, **ids))
        with pytest.raises(UserError, match=said):
            make_scorer(other)


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
