"""The numbers of a forward pass over pairs, and the interface of a preference-optimisation method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor


Strength = Annotated[float, Field(ge=1e-12, le=1e12)]
"""An eta or a beta: beyond these, fp32 cannot hold losses that have its square or the square of its inverse."""


class PairLogps(NamedTuple):
    """B pairs; every field has shape (pair,), fp32."""

    policy_chosen: Float[Tensor, " pair"]
    """log pi(y_w|x), summed over the answer's tokens, nats, at most 0."""
    policy_rejected: Float[Tensor, " pair"]
    """log pi(y_l|x)."""
    ref_chosen: Float[Tensor, " pair"]
    """log pi_t(y_w|x) under the reference, without gradient."""
    ref_rejected: Float[Tensor, " pair"]
    """log pi_t(y_l|x)."""
    chosen_tokens: Float[Tensor, " pair"]
    """Answer length, tokens, at least 1."""
    rejected_tokens: Float[Tensor, " pair"]
    chosen_log_weight: Float[Tensor, " pair"]
    """Mean over tokens of log pi(y_t) - log sum_v pi(v)^2 (sampled), of log pi(y_t) - log max_v pi(v) (greedy), or of
    log pi(y_t) (none), nats, without gradient."""
    rejected_log_weight: Float[Tensor, " pair"]
    chosen_win: Float[Tensor, " pair"]
    """P(y_w > pi_t), in [0, 1]."""
    rejected_win: Float[Tensor, " pair"]
    """P(y_l > pi_t), in [0, 1]."""
    chosen_beats_rejected: Float[Tensor, " pair"]
    """P(y_w > y_l), in [0, 1]."""

    @property
    def chosen_logratio(self) -> Float[Tensor, " pair"]:
        """Delta_w = log pi(y_w|x) - log pi_t(y_w|x)."""
        return self.policy_chosen - self.ref_chosen.detach()

    @property
    def rejected_logratio(self) -> Float[Tensor, " pair"]:
        """Delta_l = log pi(y_l|x) - log pi_t(y_l|x)."""
        return self.policy_rejected - self.ref_rejected.detach()


@runtime_checkable
class Method(Protocol):
    """A loss: a config class with its hyper-parameters as fields."""

    @property
    def name(self) -> str:
        """The label shown in tables."""
        ...

    @property
    def beta(self) -> float:
        """The implicit reward of an answer is beta times its log-ratio."""
        ...

    @property
    def loss_unit(self) -> float:
        """The number that logged losses are divided by, so that runs with other hyper-parameters compare."""
        ...

    def loss(self, p: PairLogps) -> Float[Tensor, " pair"]:
        """Return one value a pair."""
        ...


@runtime_checkable
class Targeted(Protocol):
    """A method whose loss is zero where both log-ratios have reached targets."""

    def targets(self, p: PairLogps) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """Return the targets of chosen and rejected, nats, without gradient."""
        ...


@runtime_checkable
class Weighted(Protocol):
    """A method that weights its pairs."""

    @property
    def alignment(self) -> Literal["sampled", "greedy", "none"]:
        """Which log-weights the forward pass has to bring."""
        ...

    @property
    def clamp(self) -> bool:
        """Weights are cut at 1."""
        ...

    def weight(self, p: PairLogps) -> Float[Tensor, " pair"]:
        """Return one value a pair, without gradient."""
        ...


def alignment_of(method: Method) -> Literal["none", "sampled", "greedy"]:
    """Return which log-weights the forward pass has to bring; nobody reads those of a method without weights."""
    return method.alignment if isinstance(method, Weighted) else "none"
