"""IPO, arXiv:2310.12036."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float

from src.kernel.config import Free, Label, config
from src.methods.method import PairLogps, Strength

if TYPE_CHECKING:
    from torch import Tensor


@config
class IPO:
    """Identity preference optimisation (eq. 17):

        loss = (h - 1 / (2 beta))^2        h = D_w - D_l

    D_w, D_l: `chosen_logratio`, `rejected_logratio`.
    """

    name: Free[Label]
    beta: Strength
    """The paper's tau, 1/nats: at the optimum of a single pair, h = 1 / (2 beta)."""
    average: bool
    """Divide each log-ratio by its answer's length in tokens, as TRL does; the paper's equation sums."""

    @property
    def loss_unit(self) -> float:
        """The loss at h = 0, where policy and reference agree."""
        return 1 / (2 * self.beta) ** 2

    def loss(self, p: PairLogps) -> Float[Tensor, " pair"]:
        """Return nats squared (per token squared when averaged), at least 0."""
        chosen, rejected = p.chosen_logratio, p.rejected_logratio
        if self.average:
            chosen, rejected = chosen / p.chosen_tokens, rejected / p.rejected_tokens
        return (chosen - rejected - 1 / (2 * self.beta)) ** 2
