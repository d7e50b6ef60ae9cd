"""Laws that hold for every method of conf/method/."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import torch
from conftest import inputs
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from src.methods.method import Method, PairLogps

ROOT = Path(__file__).parents[2]
YAMLS = {path.stem: path for path in sorted((ROOT / "conf/method").glob("*.yaml"))}
DATA = [field for field in PairLogps._fields if not field.startswith("policy_")]


def build(name: str, /, **changes: Any) -> Method:
    """Return the method of conf/method/<name>.yaml with some keys changed."""
    return instantiate(OmegaConf.merge(OmegaConf.load(YAMLS[name]), changes))


METHODS = {name: build(name) for name in YAMLS} | {
    "sppo, center .3": build("sppo", center=0.3),
    "ipo, averaged": build("ipo", average=True),
    "wpo, clamped": build("wpo", clamp=True),
    "wpo, greedy": build("wpo", alignment="greedy"),
}
# Each example is tried with every method, so there are fewer examples.
LAW = settings(max_examples=inputs(20, 500))


@st.composite
def batches(draw: st.DrawFn) -> PairLogps:
    """Return 1 to 6 pairs; log-probabilities are quarters of a nat, at least -2000: their sums are exact in fp32."""
    size = draw(st.integers(1, 6))

    def column(elements: st.SearchStrategy[float]) -> Tensor:
        return torch.tensor(draw(st.lists(elements, min_size=size, max_size=size)))

    logp = st.integers(-8000, 0).map(lambda quarters: quarters / 4)
    tokens = st.integers(1, 1000).map(float)
    log_weight = st.floats(-8, 3, width=32)
    probability = st.floats(0.015625, 0.984375, width=32)
    kinds = [logp] * 4 + [tokens] * 2 + [log_weight] * 2 + [probability] * 3
    return PairLogps(*map(column, kinds))


def fresh_pairs() -> PairLogps:
    """Return two pairs as at the first step (policy = reference), the chosen answer the better one."""
    logp, size = [torch.tensor([-20.0, -30.0]), torch.tensor([-15.0, -40.0])], torch.tensor([8.0, 5.0])
    log_weight = torch.tensor([-0.5, 0.25])
    probabilities = torch.tensor([[0.9, 0.6], [0.1, 0.25], [0.95, 0.75]])
    return PairLogps(*logp, *logp, size, size + 3, log_weight, log_weight - 1, *probabilities)


def with_gradient(p: PairLogps) -> PairLogps:
    return PairLogps(*(column.clone().requires_grad_() for column in p))


@LAW
@given(p=batches())
def test_one_finite_loss_a_pair_of_the_same_type(p: PairLogps) -> None:
    for name, method in METHODS.items():
        losses = method.loss(p)
        assert losses.shape == p.policy_chosen.shape and losses.dtype == torch.float32, name
        assert losses.isfinite().all() and (losses >= 0).all(), name


def test_loss_and_gradient_are_finite_at_extreme_log_ratios() -> None:
    for (name, method), chosen, rejected in product(METHODS.items(), (-1e4, 0.0, 1e4), (-1e4, 0.0, 1e4)):
        p = fresh_pairs()
        p = with_gradient(p._replace(policy_chosen=p.ref_chosen + chosen, policy_rejected=p.ref_rejected + rejected))
        losses = method.loss(p)
        gradients = torch.autograd.grad(losses.sum(), [p.policy_chosen, p.policy_rejected])
        assert all(one.isfinite().all() for one in (losses, *gradients)), (name, chosen, rejected)


def test_descent_raises_the_winner_and_lowers_the_loser_and_nothing_else_has_a_gradient() -> None:
    """Reference, weights and probabilities have none, even if they come with `requires_grad`. Lengths have one where
    an average divides by them."""
    for name, method in METHODS.items():
        p = with_gradient(fresh_pairs())
        method.loss(p).sum().backward()
        assert p.policy_chosen.grad is not None and (p.policy_chosen.grad < 0).all(), name
        assert p.policy_rejected.grad is not None and (p.policy_rejected.grad > 0).all(), name
        assert [one for one in DATA if "tokens" not in one and getattr(p, one).grad is not None] == [], name
