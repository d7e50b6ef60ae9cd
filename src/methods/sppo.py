"""SPPO, arXiv:2405.00675, with two win probabilities and with one (`sppo_single` of the public code)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from jaxtyping import Float

from src.kernel.config import Free, Label, Share, config
from src.methods.method import PairLogps, Strength

if TYPE_CHECKING:
    from torch import Tensor


@config
class _SquaredDistance(ABC):
    """Half the squared distance of both log-ratios from their targets."""

    name: Free[Label]
    eta: Strength
    """1 / beta: nats of log-ratio for a win probability of 1 above the center."""

    @property
    def beta(self) -> float:
        return 1 / self.eta

    @property
    def loss_unit(self) -> float:
        """The loss grows with eta^2."""
        return self.eta**2

    def loss(self, p: PairLogps) -> Float[Tensor, " pair"]:
        """Return nats squared, at least 0; 0 where both log-ratios have reached their targets."""
        chosen_target, rejected_target = self.targets(p)
        return ((p.chosen_logratio - chosen_target) ** 2 + (p.rejected_logratio - rejected_target) ** 2) / 2

    @abstractmethod
    def targets(self, p: PairLogps) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """Return the targets of chosen and rejected, nats."""
        ...


@config
class SPPO(_SquaredDistance):
    """Self-play preference optimisation (eq. 4.4 on two answers, as eq. 4.7; halved as in the public code):

        loss = [ (D_w - eta (P_w - c))^2 + (D_l - eta (P_l - c))^2 ] / 2

    D_w, D_l: `chosen_logratio`, `rejected_logratio`; P_w, P_l: `chosen_win`, `rejected_win`; c: `center`.
    Both P above c raise both answers: the target of the loser is not always negative.
    """

    center: Share
    """The constant 1/2 of eq. 4.4, tunable (Appendix A)."""

    def targets(self, p: PairLogps) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """Return eta (P_w - c) and eta (P_l - c), nats."""
        return self.eta * (p.chosen_win.detach() - self.center), self.eta * (p.rejected_win.detach() - self.center)


@config
class SPPOSingle(_SquaredDistance):
    """SPPO (eq. 4.7) with one probability for both answers, p = P(y_w > y_l) (`chosen_beats_rejected`):

        loss = [ (D_w - eta (p - 1/2))^2 + (D_l + eta (p - 1/2))^2 ] / 2

    D_w, D_l: `chosen_logratio`, `rejected_logratio`. It is `SPPO` at P_w = p, P_l = 1 - p, center 1/2.
    """

    def targets(self, p: PairLogps) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """Return eta (p - 1/2) and its negative, nats."""
        target = self.eta * (p.chosen_beats_rejected.detach() - 0.5)
        return target, -target
