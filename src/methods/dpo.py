"""DPO, arXiv:2305.18290."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float

from src.kernel.config import Free, Label, config
from src.methods.method import PairLogps, Strength

if TYPE_CHECKING:
    from torch import Tensor


def dpo_loss(p: PairLogps, beta: float) -> Float[Tensor, " pair"]:
    """Return -log sigma(beta (D_w - D_l)), eq. 7, nats; stable at any log-ratio. WPO weights the same loss."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * (p.chosen_logratio - p.rejected_logratio))


@config
class DPO:
    """Direct preference optimisation (eq. 7):

        loss = -log sigma(beta (D_w - D_l))

    D_w, D_l: `chosen_logratio`, `rejected_logratio`.
    """

    name: Free[Label]
    beta: Strength
    """The reward of an answer, in logits of preference, for one nat of log-ratio; 1/nats."""

    @property
    def loss_unit(self) -> float:
        return 1.0

    def loss(self, p: PairLogps) -> Float[Tensor, " pair"]:
        """Return nats, above 0; log 2 where policy and reference agree."""
        return dpo_loss(p, self.beta)
