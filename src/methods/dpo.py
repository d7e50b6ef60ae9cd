"""DPO, arXiv:2305.18290."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float

from src.kernel.config import Free, Label, config
from src.methods.method import PairLogps, Strength

if TYPE_CHECKING:
    from torch import Tensor


@config
class DPO:
    """Direct preference optimisation (eq. 7):

        loss = -log sigma(beta (D_w - D_l))

    D_w, D_l: `chosen_logratio`, `rejected_logratio`.
    """

    name: Free[Label]
    beta: Strength
    """The reward of an answer, in logits of preference, for one nat of log-ratio; 1/nats."""

    loss_unit: ClassVar[float] = 1.0

    def loss(self, p: PairLogps) -> Float[Tensor, " pair"]:
        """Return nats, above 0 and stable at any log-ratio; log 2 where policy and reference agree."""
        from torch.nn.functional import logsigmoid

        return -logsigmoid(self.beta * (p.chosen_logratio - p.rejected_logratio))
