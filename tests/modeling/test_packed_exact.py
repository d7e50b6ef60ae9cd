"""Packed, prefix-shared and chunked against answer by answer: log-probabilities, weights, loss, every gradient."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
import torch
from answer_twin import answer_by_answer, assert_close, drawn, odd_groups
from transformers import AutoConfig, AutoModelForCausalLM

from src.methods.dpo import DPO
from src.methods.method import Method, alignment_of
from src.methods.sppo import SPPO
from src.methods.wpo import WPO
from src.modeling.logps import AnswerLogps, bind_forward
from src.modeling.packing import Group, pack
from src.modeling.policy import AttentionKind
from src.training.batch import collate, pair_up
from src.training.recipe import Lengths

GEMMA = {"model_type": "gemma2", "query_pre_attn_scalar": 8}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral, window": {"model_type": "mistral", "sliding_window": 11},
    "gemma2": GEMMA | {"sliding_window": 11},
    "gemma2, low caps": GEMMA | {"sliding_window": 5, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
}
KINDS: tuple[AttentionKind, ...] = ("segments", "flex")
METHODS: dict[str, Method] = {
    "sppo": SPPO(name="sppo", eta=20.0, center=0.5),
    "dpo": DPO(name="dpo", beta=0.1),
    "wpo, sampled": WPO(name="wpo", beta=0.1, alignment="sampled", clamp=False),
    "wpo, greedy": WPO(name="wpo", beta=0.1, alignment="greedy", clamp=True),
    "wpo, none": WPO(name="wpo", beta=0.1, alignment="none", clamp=False),
}
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def random_model(name: str, seed: int) -> Any:
    """Make a model of four layers, so that windows alternate; heads, widths and weights are drawn from the seed."""
    chance = random.Random(seed)
    shape = {"num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 256}
    choices = {"num_key_value_heads": (1, 2, 4), "head_dim": (8, 16), "hidden_size": (24, 32, 40)}
    choices |= {"intermediate_size": (48, 56), "vocab_size": (301, 320)}
    shape |= {key: chance.choice(values) for key, values in choices.items()}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    torch.manual_seed(seed)
    settings = AutoConfig.for_model(**{**shape, **ids, **MODELS[name]})
    model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager").float().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)  # far from uniform, so that wrong masks show
    return model


def twins(name: str, seed: int) -> tuple[Any, Any]:
    """Make two models with the same weights: one to become a scorer, one left as transformers made it."""
    ours, plain = random_model(name, seed), random_model(name, seed)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def scored(model: Any, groups: list[Group], alignment: Any, kind: AttentionKind, device: str = "cpu") -> AnswerLogps:
    bind_forward(model.to(device), alignment, 7, kind)
    return model(pack(groups, 1 if kind == "segments" else 128).to(device))


def loss_of(method: Method, answers: AnswerLogps, groups: list[Group], expected: AnswerLogps) -> torch.Tensor:
    """Return the method's loss of each pair, where the reference is some nats off the policy."""
    chance, near = random.Random(0), expected.logp.tolist()
    rows = [
        {"prompt_token_ids": group.prompt, "chosen_token_ids": group.answers[0], "rejected_token_ids": group.answers[1]}
        | {"ref_chosen_logp": near[2 * i] + chance.gauss(0, 3), "ref_rejected_logp": near[2 * i + 1] + 2.0}
        | {"chosen_win": chance.uniform(0.5, 0.9), "rejected_win": chance.uniform(0.1, 0.5)}
        | {"chosen_beats_rejected": chance.uniform(0.5, 0.9)}
        for i, group in enumerate(groups)
    ]
    batch = collate(rows, Lengths(max_prompt=100, max_total=200, truncation="separate"))
    return method.loss(pair_up(answers, batch))


def check(name: str, kind: AttentionKind, method: Method, seed: int) -> None:
    """Compare all that training needs. Sums of up to 30 tokens are about -150 nats: fp32 leaves some 1e-5 of them."""
    ours, plain = twins(name, seed)
    groups, chance = odd_groups(seed), random.Random(seed)
    more = [Group(drawn(chance, 14), [drawn(chance, n) for n in lengths]) for lengths in ((9,), (1, 13, 6, 2))]
    with torch.no_grad():  # one answer and four to a prompt
        assert_close(scored(ours, more, "none", kind).logp, answer_by_answer(plain, more).logp, 2e-4, 4e-5)
    expected = answer_by_answer(plain, groups, alignment_of(method))
    packed = scored(ours, groups, alignment_of(method), kind)
    assert torch.equal(packed.tokens, expected.tokens)
    assert_close(packed.logp, expected.logp, largest=2e-4, mean=4e-5)
    assert_close(packed.log_weight, expected.log_weight, largest=1e-4, mean=1e-5)
    losses, expected_losses = (loss_of(method, answers, groups, expected) for answers in (packed, expected))
    scale = expected_losses.abs().mean()
    assert_close(losses / scale, expected_losses / scale, largest=2e-4, mean=5e-5)
    losses.mean().backward()
    expected_losses.mean().backward()
    for parameter, twin in zip(ours.parameters(), plain.parameters(), strict=True):
        scale = twin.grad.abs().max()
        assert scale > 0
        assert_close(parameter.grad / scale, twin.grad / scale, largest=2e-4, mean=1e-5)


@pytest.mark.parametrize(
    ("name", "kind", "method"),
    [
        ("llama", "segments", "sppo"),
        ("llama, tied", "segments", "dpo"),
        ("mistral", "segments", "wpo, sampled"),
        ("mistral, window", "segments", "wpo, greedy"),
        ("gemma2", "segments", "sppo"),
        ("gemma2, low caps", "segments", "wpo, sampled"),
        ("llama", "flex", "wpo, greedy"),
        ("mistral, window", "flex", "dpo"),
        ("gemma2, low caps", "flex", "sppo"),
    ],
)
def test_packed_is_answer_by_answer(name: str, kind: AttentionKind, method: str, eager_flex: None) -> None:
    """Each architecture and each method once."""
    check(name, kind, METHODS[method], seed=3)


@pytest.mark.full
@pytest.mark.parametrize(("name", "kind", "method"), [*product(MODELS, KINDS, METHODS)])
def test_packed_is_answer_by_answer_for_every_method(
    name: str, kind: AttentionKind, method: str, eager_flex: None
) -> None:
    check(name, kind, METHODS[method], seed=2)


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "bfloat16"), pytest.param("cuda", "float32", marks=CUDA), pytest.param("cuda", "bfloat16", marks=CUDA)],
)
def test_bf16_products_cost_hundredths_of_a_nat_a_token(
    device: str, precision: str, kind: AttentionKind, request: pytest.FixtureRequest
) -> None:
    """bf16 keeps 8 bits: logits of about 5 are off by some 5 * 2^-8 = .02; gradients by some per cent of their norm.

    Rows of two lengths, so that a compiled kernel is used for more than the one that it was made for.
    """
    if device == "cpu":
        request.getfixturevalue("eager_flex")
    largest, mean, share = (0.2, 0.05, 0.1) if precision == "bfloat16" else (1e-3, 1e-4, 1e-3)
    for name, seed in product(("llama, tied", "mistral, window", "gemma2, low caps"), (8, 9)):
        ours, plain = twins(name, 8)
        groups = odd_groups(seed)
        weights = torch.randn(2 * len(groups))
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            packed = scored(ours, groups, "sampled", kind, device)
        exact = answer_by_answer(plain, groups)
        off = (packed.logp.detach().cpu() - exact.logp.detach()) / exact.tokens
        assert_close(off, torch.zeros(len(off)), largest=largest, mean=mean)
        (packed.logp @ weights.to(device)).backward()
        (exact.logp @ weights).backward()
        gradients = [torch.cat([p.grad.cpu().flatten() for p in model.parameters()]) for model in (ours, plain)]
        assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < share, name
