"""A method: DPO with the win probability in place of the label."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from pydantic import PositiveFloat

from src.kernel.config import Free, Label, config
from src.methods.method import PairLogps

if TYPE_CHECKING:
    from torch import Tensor


@config
class SoftDPO:
    """Cross-entropy between p = P(y_w > y_l) and DPO's model of it:

        loss = -p log sigma(h) - (1 - p) log sigma(-h)        h = beta (D_w - D_l)

    At the optimum of a pair, h is the logit of p.
    """

    name: Free[Label]
    beta: PositiveFloat
    """As in DPO, in 1/nats."""

    @property
    def loss_unit(self) -> float:
        return 1.0

    def loss(self, p: PairLogps) -> Float[Tensor, " pair"]:
        """Return nats, above 0; log 2 where policy and reference agree."""
        from torch.nn.functional import logsigmoid

        h = self.beta * (p.chosen_logratio - p.rejected_logratio)
        win = p.chosen_beats_rejected.detach()
        return -win * logsigmoid(h) - (1 - win) * logsigmoid(-h)
