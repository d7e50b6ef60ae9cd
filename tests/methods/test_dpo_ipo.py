"""DPO (arXiv:2305.18290 eq. 7) and IPO (arXiv:2310.12036 eq. 17) by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.methods.dpo import DPO
from src.methods.ipo import IPO
from src.methods.pair_logps import PairLogps


def pair(**fields: float) -> PairLogps:
    """Reference log-probabilities are 0, so that `policy_*` are log-ratios; answers are one token long."""
    ones = torch.ones(1)
    columns = {name: torch.tensor([float(field)]) for name, field in fields.items()}
    return PairLogps(*torch.zeros(11, 1))._replace(**{"chosen_tokens": ones, "rejected_tokens": ones} | columns)


def dpo(beta: float) -> DPO:
    return DPO(name="dpo", beta=beta)


def ipo(beta: float, average: bool = False) -> IPO:
    return IPO(name="ipo", beta=beta, average=average)


def test_dpo_by_hand() -> None:
    """beta (D_w - D_l) = 1/2 (ln 3 + ln 3) = ln 3; sigma(ln 3) = 3 / (3 + 1) = 3/4; loss = ln 4/3; turned: ln 4."""
    p = pair(policy_chosen=math.log(3), policy_rejected=-math.log(3))
    assert dpo(0.5).loss(p).item() == pytest.approx(math.log(4 / 3))
    assert dpo(0.5).loss(pair(policy_chosen=-math.log(3), policy_rejected=math.log(3))).item() == pytest.approx(
        math.log(4)
    )


def test_dpo_starts_at_log_2() -> None:
    """Policy = reference: sigma(0) = 1/2, whatever beta and the log-probabilities are."""
    p = pair(policy_chosen=-30, ref_chosen=-30, policy_rejected=-7, ref_rejected=-7)
    assert dpo(0.1).loss(p).item() == dpo(9).loss(p).item() == pytest.approx(math.log(2))


def test_dpo_is_linear_where_the_policy_is_far_on_the_wrong_side() -> None:
    """-log sigma(-x) = x + log(1 + e^-x): exactly x at 2e4, where e^x overflows; 0 on the right side."""
    wrong, right = (
        pair(policy_chosen=-1e4, policy_rejected=1e4),
        pair(policy_chosen=1e4, policy_rejected=-1e4),
    )
    assert dpo(1).loss(wrong).item() == 2e4
    assert dpo(1).loss(right).item() == 0


@given(chosen=st.floats(-20, 20), rejected=st.floats(-20, 20), beta=st.sampled_from([0.01, 0.1, 1.0]))
def test_dpo_gradient_by_hand(chosen: float, rejected: float, beta: float) -> None:
    """d loss / d D_w = -beta sigma(-beta (D_w - D_l)), and the opposite for D_l."""
    winner, loser = torch.tensor([chosen], requires_grad=True), torch.tensor([rejected], requires_grad=True)
    dpo(beta).loss(pair()._replace(policy_chosen=winner, policy_rejected=loser)).sum().backward()
    slope = -beta / (1 + math.exp(beta * (chosen - rejected)))
    assert winner.grad is not None and winner.grad.item() == pytest.approx(slope, rel=1e-4, abs=1e-9)
    assert loser.grad is not None and loser.grad.item() == -winner.grad.item()


def test_ipo_by_hand() -> None:
    """h = 2 - (-1) = 3.

    beta .25: 1 / (2 * .25) = 2, (3 - 2)^2 = 1; beta .125: (3 - 4)^2 = 1; beta .0625: (3 - 8)^2 = 25.
    """
    p = pair(policy_chosen=2, policy_rejected=-1)
    assert [ipo(beta).loss(p).item() for beta in (0.25, 0.125, 0.0625)] == [1, 1, 25]


def test_averaged_ipo_by_hand() -> None:
    """beta .125, so 1 / (2 beta) = 4. 12 nats over 4 tokens against 10 over 5:

    means: h = 3 - 2 = 1, (1 - 4)^2 = 9; sums: h = 12 - 10 = 2, (2 - 4)^2 = 4.
    """
    p = pair(policy_chosen=12, chosen_tokens=4, policy_rejected=10, rejected_tokens=5)
    assert ipo(0.125, average=True).loss(p).item() == 9
    assert ipo(0.125, average=False).loss(p).item() == 4


def test_ipo_is_zero_at_its_margin_and_one_unit_at_the_start() -> None:
    """h = 1 / (2 beta) is the minimum; at h = 0 the loss is 1 / (2 beta)^2, the unit it is logged in."""
    beta = 0.125
    assert ipo(beta).loss(pair(policy_chosen=1 / (2 * beta))).item() == 0
    assert ipo(beta).loss(pair()).item() / ipo(beta).loss_unit == pytest.approx(1)


def test_ipo_pulls_an_overshooting_margin_back_and_dpo_does_not() -> None:
    """h = 20 past IPO's margin 1 / (2 * .1) = 5: its gradient turns round; DPO's keeps its sign."""
    for method, sign in ((ipo(0.1), 1), (dpo(0.1), -1)):
        winner = torch.tensor([20.0], requires_grad=True)
        method.loss(pair()._replace(policy_chosen=winner)).sum().backward()
        assert winner.grad is not None and winner.grad.sign().item() == sign
