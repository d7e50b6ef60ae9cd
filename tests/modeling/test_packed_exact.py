"""Packed, prefix-shared and chunked against padded with whole logits: log-probabilities, loss, every gradient."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
import torch
from padded_twin import assert_close, assert_same_gradients, odd_groups, padded_log_weights, padded_token_logps
from transformers import AutoConfig, AutoModelForCausalLM

from src.methods.dpo import DPO
from src.methods.method import Method, alignment_of
from src.methods.sppo import SPPO
from src.methods.wpo import WPO
from src.modeling.logps import AnswerLogps, answer_logps, bind_forward
from src.modeling.packing import Group, pack
from src.modeling.policy import AttentionKind
from src.training.batch import PairBatch, collate, pair_up
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
}
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def random_model(name: str, seed: int) -> Any:
    """Four layers, so that windows alternate; heads, widths and weights drawn anew from the seed."""
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
    """Two models with the same weights: one to become a scorer, one left as transformers made it."""
    ours, plain = random_model(name, seed), random_model(name, seed)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def scored(model: Any, groups: list[Group], alignment: Any, kind: AttentionKind, chunk: int = 7) -> AnswerLogps:
    bind_forward(model, alignment, chunk, kind)
    return model(pack(groups, 1 if kind == "segments" else 128))


def pairs_of(groups: list[Group], plain: Any, seed: int) -> tuple[list[dict[str, Any]], PairBatch]:
    """REFERENCE rows with reference log-probabilities some nats off the policy's, and their packed batch."""
    chance = random.Random(seed)
    lengths = [len(answer) for group in groups for answer in group.answers]
    with torch.no_grad():
        sums = [float(part.sum()) for part in padded_token_logps(plain, groups).split(lengths)]
    rows = [
        {"prompt_token_ids": g.prompt, "chosen_token_ids": g.answers[0], "rejected_token_ids": g.answers[1]}
        | {"ref_chosen_logp": sums[2 * i] + chance.gauss(0, 3), "ref_rejected_logp": sums[2 * i + 1] + 2.0}
        | {"chosen_win": chance.uniform(0.5, 0.9), "rejected_win": chance.uniform(0.1, 0.5)}
        | {"chosen_beats_rejected": chance.uniform(0.5, 0.9)}
        for i, g in enumerate(groups)
    ]
    return rows, collate(rows, Lengths(max_prompt=100, max_total=200, truncation="separate"))


def padded_answers(plain: Any, groups: list[Group], alignment: Any) -> AnswerLogps:
    lengths = [len(answer) for group in groups for answer in group.answers]
    sums = torch.stack([part.sum() for part in padded_token_logps(plain, groups).split(lengths)])
    with torch.no_grad():
        weights = padded_log_weights(plain, groups, alignment).float()
    return AnswerLogps(logp=sums, tokens=torch.tensor(lengths).float(), log_weight=weights)


def check_tokens(name: str, kind: AttentionKind, seed: int) -> None:
    """Cut into groups of one answer each of one token more, the sums of the row are those of its tokens."""
    ours, plain = twins(name, seed)
    groups = odd_groups(seed)
    prefixes = [
        Group(g.prompt, [answer[:n] for answer in g.answers for n in range(1, len(answer) + 1)]) for g in groups
    ]
    with torch.no_grad():
        expected = padded_token_logps(plain, groups)
        sums = scored(ours, prefixes, "none", kind).logp
    ends = [n for g in groups for answer in g.answers for n in range(1, len(answer) + 1)]
    tokens = torch.where(torch.tensor(ends) == 1, sums, sums - sums.roll(1))
    assert_close(tokens, expected, largest=1e-4, mean=1e-5)


def check_loss_and_gradients(name: str, kind: AttentionKind, method: Method, seed: int) -> None:
    """Also sums and weights. Sums of up to 30 tokens are about -150 nats: fp32 leaves some 1e-5 of them."""
    ours, plain = twins(name, seed)
    groups = odd_groups(seed)
    _, batch = pairs_of(groups, plain, seed)
    padded, packed = (
        padded_answers(plain, groups, alignment_of(method)),
        scored(ours, groups, alignment_of(method), kind),
    )
    assert torch.equal(packed.tokens, padded.tokens)
    assert_close(packed.logp, padded.logp, largest=2e-4, mean=4e-5)
    assert_close(packed.log_weight, padded.log_weight, largest=1e-4, mean=1e-5)
    expected, got = (method.loss(pair_up(answers, batch)) for answers in (padded, packed))
    assert_close(got / expected.abs().mean(), expected / expected.abs().mean(), largest=2e-4, mean=5e-5)
    got.mean().backward()
    expected.mean().backward()
    assert_same_gradients(ours, plain, largest=2e-4, mean=1e-5)


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
def test_packed_is_padded(name: str, kind: AttentionKind, method: str, eager_flex: None) -> None:
    """Log-probabilities, weights, loss and the gradient of every parameter: each architecture and each method once."""
    if kind == "segments":  # eager FlexAttention is too slow for a row so long
        check_tokens(name, kind, seed=0)
    check_loss_and_gradients(name, kind, METHODS[method], seed=3)


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_packed_is_padded_for_every_method(name: str, kind: AttentionKind, eager_flex: None) -> None:
    check_tokens(name, kind, seed=1)
    for method in METHODS.values():
        check_loss_and_gradients(name, kind, method, seed=2)


def test_recomputed_activations_give_the_same_gradients() -> None:
    for name in ("llama, tied", "mistral, window", "gemma2"):
        ours, other = twins(name, 4)
        other.activation_checkpointing_enable({"use_reentrant": False})
        groups, weights = odd_groups(4), torch.randn(16)
        for model in (ours.train(), other.train()):
            (scored(model, groups, "none", "segments").logp @ weights).backward()
        assert_same_gradients(other, ours, largest=1e-5, mean=1e-6)


def test_groups_of_a_row_do_not_see_each_other() -> None:
    """Each by itself, in another order, and beside groups that are as close to it as they can be."""
    for name in ("llama", "mistral, window", "gemma2, low caps"):
        ours, _ = twins(name, 5)
        groups = odd_groups(5)
        twisted = [Group(g.prompt, [answer[::-1] for answer in g.answers]) for g in groups]
        with torch.no_grad():
            together = scored(ours, [*groups, *twisted], "none", "segments").logp[: 2 * len(groups)]
            alone = torch.cat([answer_logps(ours, pack([group])).logp for group in groups])
            backwards = scored(ours, groups[::-1], "none", "segments").logp.view(-1, 2).flip(0).flatten()
        assert_close(together, alone, largest=2e-4, mean=4e-5)
        assert_close(backwards, alone, largest=2e-4, mean=4e-5)


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
        bind_forward(ours.to(device), "sampled", 7, kind)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            got = ours(pack(groups, 1 if kind == "segments" else 128).to(device))
        exact = padded_answers(plain, groups, "sampled")
        off = (got.logp.detach().cpu() - exact.logp.detach()) / exact.tokens
        assert_close(off, torch.zeros(len(off)), largest=largest, mean=mean)
        (got.logp @ weights.to(device)).backward()
        (exact.logp @ weights).backward()
        flat = [torch.cat([p.grad.cpu().flatten() for p in model.parameters()]) for model in (ours, plain)]
        assert (flat[0] - flat[1]).norm() / flat[1].norm() < share, name
