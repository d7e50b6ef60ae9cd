"""WPO by hand (arXiv:2406.11827)"""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.methods.dpo import DPO
from src.methods.pair_logps import PairLogps
from src.methods.wpo import WPO

LOG_RATIOS = st.floats(-50, 50, width=32)
LOG_WEIGHTS = st.floats(-8, 8, width=32)


def pair(chosen_weight: float, rejected_weight: float, **fields: float) -> PairLogps:
    """One pair with these weights w(x, y_w), w(x, y_l); reference log-probabilities are 0."""
    logs = {"chosen_log_weight": math.log(chosen_weight), "rejected_log_weight": math.log(rejected_weight)}
    columns = {name: torch.tensor([float(field)]) for name, field in (logs | fields).items()}
    return PairLogps(*torch.zeros(11, 1))._replace(**columns)


def wpo(clamp: bool, beta: float = 0.5, alignment: Literal["sampled", "greedy"] = "sampled") -> WPO:
    return WPO(name="wpo", beta=beta, alignment=alignment, clamp=clamp)


def test_by_hand() -> None:
    """Weights 1/2 and 1/4, beta (D_w - D_l) = 1/2 (ln 3 + ln 3) = ln 3: 1/8 * -log(3/4) = ln(4/3) / 8."""
    p = pair(1 / 2, 1 / 4, policy_chosen=math.log(3), policy_rejected=-math.log(3))
    assert wpo(clamp=False).loss(p).item() == pytest.approx(math.log(4 / 3) / 8)


def test_clamp_by_hand() -> None:
    """Weights 2 and 3, policy = reference: 6 ln 2 in the paper; cut at 1, ln 2, in the public code."""
    assert wpo(clamp=False).loss(pair(2, 3)).item() == pytest.approx(6 * math.log(2))
    assert wpo(clamp=True).loss(pair(2, 3)).item() == pytest.approx(math.log(2))


def test_clamp_cuts_the_product_and_not_each_weight() -> None:
    """Weights 2 and 1/4: the product 1/2 stays; each cut by itself would give 1 * 1/4."""
    assert wpo(clamp=True).loss(pair(2, 1 / 4)).item() == pytest.approx(math.log(2) / 2)


def test_the_papers_weights_by_hand() -> None:
    """At every position pi = (1/2, 1/4, 1/4): sum pi^2 = 1/4 + 1/16 + 1/16 = 3/8, max pi = 1/2.

    Token weights, sampled: (1/2) / (3/8) = 4/3 and (1/4) / (3/8) = 2/3; greedy: 1 and 1/2.
    Answer (0, 1): the geometric mean, sqrt(4/3 * 2/3) = sqrt(8) / 3 and sqrt(1 * 1/2). Answer (0): 4/3 and 1.
    """
    pi = torch.tensor([1 / 2, 1 / 4, 1 / 4])
    for alignment, norm, weight in (
        ("sampled", (pi**2).sum(), math.sqrt(8) / 3 * 4 / 3),
        ("greedy", pi.max(), math.sqrt(1 / 2)),
    ):
        p = pair(1, 1)._replace(
            chosen_log_weight=(pi[[0, 1]] / norm).log().mean(0, keepdim=True),
            rejected_log_weight=(pi[[0]] / norm).log().mean(0, keepdim=True),
        )
        loss = wpo(clamp=False, alignment=alignment).loss(p).item()  # type: ignore[arg-type]
        assert loss == pytest.approx(weight * math.log(2)), alignment


@given(
    chosen=LOG_RATIOS,
    rejected=LOG_RATIOS,
    clamp=st.booleans(),
    alignment=st.sampled_from(["sampled", "greedy"]),
)
def test_with_weights_of_1_it_is_dpo(
    chosen: float, rejected: float, clamp: bool, alignment: Literal["sampled", "greedy"]
) -> None:
    p = pair(1, 1, policy_chosen=chosen, policy_rejected=rejected)
    assert torch.equal(wpo(clamp, 0.1, alignment).loss(p), DPO(name="dpo", beta=0.1).loss(p))


@given(
    chosen=LOG_RATIOS,
    rejected=LOG_RATIOS,
    log_weights=st.tuples(LOG_WEIGHTS, LOG_WEIGHTS),
    clamp=st.booleans(),
)
def test_gradient_is_dpos_times_the_weight(
    chosen: float, rejected: float, log_weights: tuple[float, float], clamp: bool
) -> None:
    """The weight is a constant: it scales the step of a pair and turns no gradient."""
    weight = math.exp(min(sum(log_weights), 0.0) if clamp else sum(log_weights))
    gradients = []
    for method in (wpo(clamp, 0.1), DPO(name="dpo", beta=0.1)):
        winner = torch.tensor([chosen], requires_grad=True)
        p = pair(
            1,
            1,
            policy_rejected=rejected,
            chosen_log_weight=log_weights[0],
            rejected_log_weight=log_weights[1],
        )
        method.loss(p._replace(policy_chosen=winner)).sum().backward()
        assert winner.grad is not None
        gradients.append(winner.grad.item())
    assert gradients[0] == pytest.approx(weight * gradients[1], rel=1e-4, abs=1e-30)


def test_weights_that_depend_on_the_policy_send_it_no_gradient() -> None:
    """log w depends on the policy's own logits; only the DPO factor may reach them: -beta/2 at D_w = D_l."""
    logit = torch.zeros(1, requires_grad=True)
    p = pair(1, 1)._replace(policy_chosen=logit, chosen_log_weight=3 * logit, rejected_log_weight=5 * logit)
    wpo(clamp=False, beta=0.5).loss(p).sum().backward()
    assert logit.grad is not None and logit.grad.item() == pytest.approx(-0.25)


def test_an_answer_the_policy_would_never_give_weighs_nothing() -> None:
    """A mean log-weight of -200 nats underflows to a weight of 0: no loss, and no NaN."""
    p = pair(1, 1, chosen_log_weight=-200, policy_chosen=-1e4, policy_rejected=1e4)
    assert wpo(clamp=False).loss(p).item() == 0
