"""WPO, arXiv:2406.11827."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jaxtyping import Float

from src.kernel.config import config
from src.methods.dpo import DPO
from src.methods.method import PairLogps

if TYPE_CHECKING:
    from torch import Tensor


@config
class WPO(DPO):
    """Weighted preference optimisation: DPO, a pair weighted by how likely the current policy is to say it.

        loss = w(x, y_w) w(x, y_l) * -log sigma(beta (D_w - D_l))
        w(x, y) = exp( mean_t [ log pi(y_t) - log sum_v pi(v)^2 ] )      sampled alignment
        w(x, y) = exp( mean_t [ log pi(y_t) - log max_v pi(v) ] )        greedy alignment
        w(x, y) = exp( mean_t log pi(y_t) )                              no alignment

    log w: `chosen_log_weight`, `rejected_log_weight`; D_w, D_l: `chosen_logratio`, `rejected_logratio`.
    The weights are those of the current policy and carry no gradient. A sampled one exceeds 1 where the answer's tokens
    are likelier than those that the policy would sample; the others are at most 1.
    """

    alignment: Literal["sampled", "greedy", "none"]
    """Which log w the forward pass brings; the loss itself is the same."""
    clamp: bool
    """Cut the product of the two weights at 1, as the public code does and the paper does not."""

    def loss(self, p: PairLogps) -> Float[Tensor, " pair"]:
        """Return nats, at least 0."""
        return self.weight(p) * super().loss(p)

    def weight(self, p: PairLogps) -> Float[Tensor, " pair"]:
        """Return w(x, y_w) w(x, y_l), cut at 1 where `clamp` says so."""
        log_weight = (p.chosen_log_weight + p.rejected_log_weight).detach()
        return (log_weight.clamp(max=0) if self.clamp else log_weight).exp()
