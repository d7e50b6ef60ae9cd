"""What a training step says of itself: means over all its pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from src.methods.pair_logps import Method, PairLogps, Weighted
from src.records import Row

if TYPE_CHECKING:
    from accelerate import Accelerator


class StepMetrics:
    """Sums over the micro-batches of a step, taken as means when the step is logged."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.sums: dict[str, Tensor] = {}

    def add(self, p: PairLogps, losses: Tensor) -> None:
        """Add the pairs of one micro-batch."""
        chosen, rejected = p.chosen_logratio.detach(), p.rejected_logratio.detach()
        parts = {
            "pairs": torch.ones_like(losses),
            "loss": losses.detach(),
            "loss_scaled": losses.detach() / self.method.loss_unit,
            "chosen_logratio": chosen,
            "rejected_logratio": rejected,
            "chosen_reward": self.method.beta * chosen,
            "rejected_reward": self.method.beta * rejected,
            "reward_margin": self.method.beta * (chosen - rejected),
            "reward_accuracy": (chosen > rejected).float(),
            "answer_tokens": p.chosen_tokens + p.rejected_tokens,
        }
        if isinstance(self.method, Weighted):
            parts["weight"] = self.method.weight(p)
        for name, values in parts.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=values.device)) + values.sum()

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the pairs of all processes since the last call."""
        names = list(self.sums)
        totals = accelerator.reduce(torch.stack([self.sums[name] for name in names]).double(), "sum")
        self.sums = {}
        pairs = float(totals[names.index("pairs")])
        return {"pairs": pairs} | {
            name: float(total) / pairs for name, total in zip(names, totals, strict=True) if name != "pairs"
        }


def expected_first_loss(method: Method, pairs: list[Row]) -> float:
    """Mean loss before the first step: every log-ratio is zero and every WPO weight is counted as 1."""
    zeros, ones = torch.zeros(len(pairs)), torch.ones(len(pairs))

    def column(name: str) -> Tensor:
        return torch.tensor([pair[name] for pair in pairs], dtype=torch.float32)

    return float(
        method.loss(
            PairLogps(
                policy_chosen=zeros,
                policy_rejected=zeros,
                ref_chosen=zeros,
                ref_rejected=zeros,
                chosen_tokens=ones,
                rejected_tokens=ones,
                chosen_log_weight=zeros,
                rejected_log_weight=zeros,
                chosen_win=column("chosen_win"),
                rejected_win=column("rejected_win"),
                chosen_beats_rejected=column("chosen_beats_rejected"),
            )
        ).mean()
    )
