"""SPPO by hand (arXiv:2405.00675 eq. 4.4 and 4.7, halved)"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.methods.pair_logps import PairLogps
from src.methods.sppo import SPPO
from src.methods.sppo_single import SPPOSingle

PROBABILITIES = st.floats(0.015625, 0.984375, width=32)


def pairs(**columns: list[float]) -> PairLogps:
    """Reference log-probabilities are 0, so that `policy_*` are log-ratios; what is not given is 0."""
    size = len(next(iter(columns.values())))
    return PairLogps(*torch.zeros(11, size))._replace(**{k: torch.tensor(v) for k, v in columns.items()})


def sppo(eta: float, center: float = 0.5) -> SPPO:
    return SPPO(name="sppo", eta=eta, center=center)


def single(eta: float) -> SPPOSingle:
    return SPPOSingle(name="sppo_single", eta=eta)


def test_by_hand() -> None:
    """eta = 10; targets 10 (.75 - .5) = 2.5 and 10 (.25 - .5) = -2.5.

    D_w = 1, D_l = -.5:   [ (1 - 2.5)^2 + (-.5 + 2.5)^2 ] / 2 = [ 2.25 + 4 ] / 2 = 3.125
    D_w = 3, D_l = 1.5:   [ (3 - 2.5)^2 + (1.5 + 2.5)^2 ] / 2 = [ .25 + 16 ] / 2 = 8.125
    Center .25, targets 5 and 0:   [ (1 - 5)^2 + (-.5 - 0)^2 ] / 2 = 8.125;   [ (3 - 5)^2 + 1.5^2 ] / 2 = 3.125
    """
    p = pairs(policy_chosen=[1, 3.0], policy_rejected=[-0.5, 1.5], chosen_win=[0.75] * 2, rejected_win=[0.25] * 2)
    assert sppo(10).loss(p).tolist() == [3.125, 8.125]
    assert sppo(10, center=0.25).loss(p).tolist() == [8.125, 3.125]


def test_single_by_hand() -> None:
    """eta = 8, p = .75: targets 8 (.25) = 2 and -2; [ (1 - 2)^2 + (-5 + 2)^2 ] / 2 = [ 1 + 9 ] / 2 = 5."""
    p = pairs(policy_chosen=[1.0], policy_rejected=[-5.0], chosen_beats_rejected=[0.75])
    assert single(8).loss(p).tolist() == [5.0]


def test_log_ratios_are_against_the_reference() -> None:
    """D_w = -12 + 14 = 2, D_l = -9 + 8 = -1; eta = 4, P = .5, .25: [ (2 - 0)^2 + (-1 + 1)^2 ] / 2 = 2."""
    p = pairs(
        policy_chosen=[-12.0],
        ref_chosen=[-14.0],
        policy_rejected=[-9.0],
        ref_rejected=[-8.0],
        chosen_win=[0.5],
        rejected_win=[0.25],
    )
    assert p.chosen_logratio.tolist() == [2.0] and p.rejected_logratio.tolist() == [-1.0]
    assert sppo(4).loss(p).tolist() == [2.0]


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


def test_the_scaled_loss_does_not_depend_on_eta() -> None:
    """Both log-ratios eta/8: loss / eta^2 = [ (1/8 - 1/4)^2 + (1/8 + 1/4)^2 ] / 2 = [ 1/64 + 9/64 ] / 2."""
    for eta in (1.0, 1000.0):
        ratio = {"policy_chosen": [eta / 8], "policy_rejected": [eta / 8]}
        p = pairs(**ratio, chosen_win=[0.75], rejected_win=[0.25], chosen_beats_rejected=[0.75])
        for method in (sppo(eta), single(eta)):
            assert method.loss(p).item() / method.loss_unit == pytest.approx(5 / 64)
            assert method.beta * eta == pytest.approx(1)


def test_gradient_follows_the_sign_of_each_target() -> None:
    """Descent moves against the gradient: P above 1/2 raises an answer, also a loser; P below lowers it."""
    p = pairs(chosen_win=[0.9, 0.9, 0.4, 0.5], rejected_win=[0.2, 0.6, 0.2, 0.2])
    chosen, rejected = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    sppo(10).loss(p._replace(policy_chosen=chosen, policy_rejected=rejected)).sum().backward()
    assert chosen.grad is not None and chosen.grad.sign().tolist() == [-1, -1, 1, 0]
    assert rejected.grad is not None and rejected.grad.sign().tolist() == [1, -1, 1, 1]


@given(p=PROBABILITIES, logratios=st.tuples(*[st.floats(-50, 50, width=32)] * 2))
def test_single_is_sppo_with_opposite_probabilities(p: float, logratios: tuple[float, float]) -> None:
    """P_w = p and P_l = 1 - p: eta (1 - p - 1/2) = -eta (p - 1/2)."""
    given = pairs(
        policy_chosen=[logratios[0]],
        policy_rejected=[logratios[1]],
        chosen_win=[p],
        rejected_win=[1 - p],
        chosen_beats_rejected=[p],
    )
    torch.testing.assert_close(single(64).loss(given), sppo(64).loss(given))


@given(p=PROBABILITIES, logratios=st.tuples(*[st.floats(-50, 50, width=32)] * 2))
def test_estimate_from_two_answers_is_single_at_half_eta(p: float, logratios: tuple[float, float]) -> None:
    """The paper's two-answer ablation, P_w = (1/2 + p) / 2: eta (P_w - 1/2) = (eta / 2) (p - 1/2)."""
    given = pairs(
        policy_chosen=[logratios[0]],
        policy_rejected=[logratios[1]],
        chosen_win=[(0.5 + p) / 2],
        rejected_win=[(0.5 + 1 - p) / 2],
        chosen_beats_rejected=[p],
    )
    torch.testing.assert_close(sppo(64).loss(given), single(32).loss(given))
