"""SPPO from one probability, arXiv:2405.00675 and its public code (`sppo_single`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jaxtyping import Float
from pydantic import PositiveFloat

from src.kernel.config import Free, Label, config
from src.methods.method import PairLogps

if TYPE_CHECKING:
    from torch import Tensor


@config
class SPPOSingle:
    """SPPO (eq. 4.7) with one probability for both answers, p = P(y_w > y_l) (`chosen_beats_rejected`):

        loss = [ (D_w - eta (p - 1/2))^2 + (D_l + eta (p - 1/2))^2 ] / 2

    D_w, D_l: `chosen_logratio`, `rejected_logratio`. It is `SPPO` at P_w = p, P_l = 1 - p, center 1/2.
    """

    name: Free[Label]
    eta: PositiveFloat
    """1 / beta: nats of log-ratio for a probability of 1 above 1/2."""

    @property
    def alignment(self) -> Literal["none"]:
        return "none"

    @property
    def beta(self) -> float:
        return 1 / self.eta

    @property
    def loss_unit(self) -> float:
        """The loss grows with eta^2."""
        return self.eta**2

    def loss(self, p: PairLogps) -> Float[Tensor, " pair"]:
        """Nats squared, at least 0."""
        target, _ = self.targets(p)
        return ((p.chosen_logratio - target) ** 2 + (p.rejected_logratio + target) ** 2) / 2

    def targets(self, p: PairLogps) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """eta (p - 1/2) and its negative, nats."""
        target = self.eta * (p.chosen_beats_rejected.detach() - 0.5)
        return target, -target
