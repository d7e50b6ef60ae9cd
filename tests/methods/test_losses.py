"""Losses by hand: SPPO (arXiv:2405.00675 eq. 4.4 and 4.7, halved), DPO (arXiv:2305.18290 eq. 7), IPO (arXiv:2310.12036
eq. 17) and WPO (arXiv:2406.11827).
"""

from __future__ import annotations

import math
from typing import Literal

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


# SPPO --------------------------------------------------------------------------------------------------------------


def pairs(**columns: list[float]) -> PairLogps:
    """Reference log-probabilities are 0, so that `policy_*` are log-ratios; what is not given is 0."""
    size = len(next(iter(columns.values())))
    return PairLogps(*torch.zeros(11, size))._replace(**{k: torch.tensor(v) for k, v in columns.items()})


def sppo(eta: float, center: float = 0.5) -> SPPO:
    return SPPO(name="sppo", eta=eta, center=center)


def single(eta: float) -> SPPOSingle:
    return SPPOSingle(name="sppo_single", eta=eta)


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
    assert single(8).loss(p).tolist() == [5.0]


@given(win=st.tuples(PROBABILITIES, PROBABILITIES), eta=st.sampled_from([1, 32, 1000.0]), center=PROBABILITIES)
def test_zero_and_without_gradient_at_the_fixed_point(win: tuple[float, float], eta: float, center: float) -> None:
    """pi = pi_t exp(eta (P - center)) is what eq. 4.4 is solved by."""
    p = pairs(chosen_win=[win[0]], rejected_win=[win[1]])
    chosen = (eta * (p.chosen_win - center)).requires_grad_()
    rejected = (eta * (p.rejected_win - center)).requires_grad_()
    loss = sppo(eta, center).loss(p._replace(policy_chosen=chosen, policy_rejected=rejected))
    loss.sum().backward()
    assert loss.item() == 0
    assert chosen.grad is not None and chosen.grad.item() == 0
    assert rejected.grad is not None and rejected.grad.item() == 0


def test_step_0_loss_is_the_expected_one() -> None:
    """Every log-ratio is 0: the loss is eta^2 mean( (P_w - 1/2)^2 + (P_l - 1/2)^2 ) / 2.

    P_w = .84, P_l = .15:  [ .34^2 + .35^2 ] / 2 = [ .1156 + .1225 ] / 2 = .11905
    P_w = .86, P_l = .16:  [ .36^2 + .34^2 ] / 2 = [ .1296 + .1156 ] / 2 = .1226
    mean .120825, times 1000^2 = 120,825: the 1.2e5 that a run at eta = 1000 starts from.
    """
    p = pairs(chosen_win=[0.84, 0.86], rejected_win=[0.15, 0.16])
    method = sppo(1000)
    assert method.loss(p).mean().item() == pytest.approx(120_825, rel=1e-6)
    assert method.loss(p).mean().item() / method.loss_unit == pytest.approx(0.120825, rel=1e-6)


# DPO and IPO -------------------------------------------------------------------------------------------------------


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


# WPO ---------------------------------------------------------------------------------------------------------------


def weighted(chosen_weight: float, rejected_weight: float, **fields: float) -> PairLogps:
    """One pair with these weights w(x, y_w), w(x, y_l); reference log-probabilities are 0."""
    logs = {"chosen_log_weight": math.log(chosen_weight), "rejected_log_weight": math.log(rejected_weight)}
    columns = {name: torch.tensor([float(field)]) for name, field in (logs | fields).items()}
    return PairLogps(*torch.zeros(11, 1))._replace(**columns)


def wpo(clamp: bool, beta: float = 0.5, alignment: Literal["sampled", "greedy"] = "sampled") -> WPO:
    return WPO(name="wpo", beta=beta, alignment=alignment, clamp=clamp)


def test_wpo_by_hand() -> None:
    """Weights 1/2 and 1/4, beta (D_w - D_l) = 1/2 (ln 3 + ln 3) = ln 3: 1/8 * -log(3/4) = ln(4/3) / 8."""
    p = weighted(1 / 2, 1 / 4, policy_chosen=math.log(3), policy_rejected=-math.log(3))
    assert wpo(clamp=False).loss(p).item() == pytest.approx(math.log(4 / 3) / 8)


def test_clamp_by_hand() -> None:
    """Weights 2 and 3, policy = reference: 6 ln 2 in the paper; cut at 1, ln 2, in the public code."""
    assert wpo(clamp=False).loss(weighted(2, 3)).item() == pytest.approx(6 * math.log(2))
    assert wpo(clamp=True).loss(weighted(2, 3)).item() == pytest.approx(math.log(2))
    assert wpo(clamp=True).loss(weighted(2, 1 / 4)).item() == pytest.approx(math.log(2) / 2), "the product, not each"


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
        p = weighted(1, 1)._replace(
            chosen_log_weight=(pi[[0, 1]] / norm).log().mean(0, keepdim=True),
            rejected_log_weight=(pi[[0]] / norm).log().mean(0, keepdim=True),
        )
        loss = wpo(clamp=False, alignment=alignment).loss(p).item()  # type: ignore[arg-type]
        assert loss == pytest.approx(weight * math.log(2)), alignment


def test_the_weight_is_a_constant_that_scales_dpos_gradient() -> None:
    """log w depends on the policy's own logits; only the DPO factor may reach them."""
    for clamp, weight in ((False, 6.0), (True, 1.0)):
        gradients = []
        for method in (wpo(clamp, 0.1), DPO(name="dpo", beta=0.1)):
            winner = torch.tensor([1.5], requires_grad=True)
            own = (winner - winner.detach()) * 3 + math.log(3)
            p = weighted(2, 2, policy_rejected=-2)._replace(policy_chosen=winner, rejected_log_weight=own)
            method.loss(p).sum().backward()
            assert winner.grad is not None
            gradients.append(winner.grad.item())
        assert gradients[0] == pytest.approx(weight * gradients[1])
