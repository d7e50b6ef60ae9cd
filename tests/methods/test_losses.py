"""Losses by hand: SPPO (arXiv:2405.00675 eq. 4.4 and 4.7, halved), DPO (arXiv:2305.18290 eq. 7), IPO (arXiv:2310.12036
eq. 17) and WPO (arXiv:2406.11827).
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.methods.dpo import DPO
from src.methods.ipo import IPO
from src.methods.method import PairLogps
from src.methods.sppo import SPPO, SPPOSingle
from src.methods.wpo import WPO

PROBABILITIES = st.floats(0.015625, 0.984375, width=32)


def pairs(**columns: list[float]) -> PairLogps:
    """Return pairs whose other columns are 0. The reference is 0, so that `policy_*` are log-ratios."""
    size = len(next(iter(columns.values())))
    return PairLogps(*torch.zeros(11, size))._replace(**{k: torch.tensor(v) for k, v in columns.items()})


def sppo(eta: float, center: float = 0.5) -> SPPO:
    return SPPO(name="sppo", eta=eta, center=center)


def test_sppo_by_hand() -> None:
    """eta = 10; targets 10 (.75 - .5) = 2.5 and 10 (.25 - .5) = -2.5.

    D_w = 1, D_l = -.5:   [ (1 - 2.5)^2 + (-.5 + 2.5)^2 ] / 2 = [ 2.25 + 4 ] / 2 = 3.125
    D_w = 3, D_l = 1.5:   [ (3 - 2.5)^2 + (1.5 + 2.5)^2 ] / 2 = [ .25 + 16 ] / 2 = 8.125
    Center .25, targets 5 and 0:   [ (1 - 5)^2 + (-.5 - 0)^2 ] / 2 = 8.125;   [ (3 - 5)^2 + 1.5^2 ] / 2 = 3.125
    """
    p = pairs(policy_chosen=[1, 3.0], policy_rejected=[-0.5, 1.5], chosen_win=[0.75] * 2, rejected_win=[0.25] * 2)
    assert sppo(10).loss(p).tolist() == [3.125, 8.125]
    assert sppo(10, center=0.25).loss(p).tolist() == [8.125, 3.125]


def test_sppo_single_by_hand() -> None:
    """eta = 8, p = .75: targets 8 (.25) = 2 and -2; [ (1 - 2)^2 + (-5 + 2)^2 ] / 2 = [ 1 + 9 ] / 2 = 5."""
    p = pairs(policy_chosen=[1.0], policy_rejected=[-5.0], chosen_beats_rejected=[0.75])
    assert SPPOSingle(name="sppo_single", eta=8).loss(p).tolist() == [5.0]


@given(win=st.tuples(PROBABILITIES, PROBABILITIES), eta=st.sampled_from([1, 32, 1000.0]), center=PROBABILITIES)
def test_sppo_is_zero_and_without_gradient_at_its_fixed_point(
    win: tuple[float, float], eta: float, center: float
) -> None:
    """pi = pi_t exp(eta (P - center)) solves eq. 4.4."""
    p = pairs(chosen_win=[win[0]], rejected_win=[win[1]])
    chosen = (eta * (p.chosen_win - center)).requires_grad_()
    rejected = (eta * (p.rejected_win - center)).requires_grad_()
    loss = sppo(eta, center).loss(p._replace(policy_chosen=chosen, policy_rejected=rejected))
    assert loss.item() == 0
    assert [gradient.item() for gradient in torch.autograd.grad(loss.sum(), [chosen, rejected])] == [0, 0]


def test_dpo_by_hand() -> None:
    """beta (D_w - D_l) = 1/2 (ln 3 + ln 3) = ln 3; sigma(ln 3) = 3 / (3 + 1) = 3/4; loss = ln 4/3; turned: ln 4."""
    p = pairs(policy_chosen=[math.log(3), -math.log(3)], policy_rejected=[-math.log(3), math.log(3)])
    assert DPO(name="dpo", beta=0.5).loss(p).tolist() == pytest.approx([math.log(4 / 3), math.log(4)])


def test_ipo_by_hand() -> None:
    """12 nats over 4 tokens against 10 over 5; beta .125, so 1 / (2 beta) = 4.

    Sums: h = 12 - 10 = 2, (2 - 4)^2 = 4. Means: h = 3 - 2 = 1, (1 - 4)^2 = 9.
    """
    p = pairs(policy_chosen=[12.0], chosen_tokens=[4.0], policy_rejected=[10.0], rejected_tokens=[5.0])
    assert [IPO(name="ipo", beta=0.125, average=average).loss(p).item() for average in (False, True)] == [4, 9]


def wpo(clamp: bool, beta: float = 0.5) -> WPO:
    return WPO(name="wpo", beta=beta, alignment="sampled", clamp=clamp)


def test_wpo_by_hand() -> None:
    """Weights 1/2 and 1/4, the DPO loss ln(4/3): ln(4/3) / 8.

    Weights 2 and 3, policy = reference: 6 ln 2 in the paper, and ln 2 in the public code, which cuts the product at 1.
    """
    logs = {"policy_chosen": [math.log(3), 0, 0], "policy_rejected": [-math.log(3), 0, 0]}
    weights = {"chosen_log_weight": [1 / 2, 2, 2], "rejected_log_weight": [1 / 4, 3, 1 / 4]}
    p = pairs(**logs, **{side: [math.log(weight) for weight in column] for side, column in weights.items()})
    expected = [math.log(4 / 3) / 8, 6 * math.log(2), math.log(2) / 2]
    assert wpo(clamp=False).loss(p).tolist() == pytest.approx(expected)
    expected[1] = math.log(2)
    assert wpo(clamp=True).loss(p).tolist() == pytest.approx(expected)


def test_the_weight_is_a_constant_that_scales_dpos_gradient() -> None:
    """log w depends on the policy's own logits; only the DPO factor may reach them."""
    gradients = []
    for method in (wpo(clamp=False, beta=0.1), wpo(clamp=True, beta=0.1), DPO(name="dpo", beta=0.1)):
        winner = torch.tensor([1.5], requires_grad=True)
        log_weight = (winner - winner.detach()) * 3 + math.log(6)
        p = pairs(policy_rejected=[-2.0])._replace(policy_chosen=winner, rejected_log_weight=log_weight)
        method.loss(p).sum().backward()
        assert winner.grad is not None
        gradients.append(winner.grad.item())
    assert gradients[:2] == pytest.approx([6 * gradients[2], gradients[2]])
