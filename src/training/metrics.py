"""The numbers of a training step, summed over all pairs: means for the log, and guards.

The guards look at the sums before the weights move: for what is not finite, and for a reference of another policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, reduce
from torch import Tensor

from src.kernel.config import Fault
from src.kernel.rows import Row
from src.methods.method import Method, PairLogps, Targeted, Weighted
from src.modeling.policy import Precision

ALLOWED: dict[Precision, float] = {"float32": 0.001, "bfloat16": 0.005}
"""Nats per token by which policy and reference may differ before the first step (measured: docs/trainer.md)."""
ROUNDED: dict[Precision, float] = {"float32": 0.0, "bfloat16": 0.1}
"""Nats more for an answer of one token; rounding goes either way, so an answer of n tokens may have sqrt(n) of it."""
EACH = 4
"""A single answer may differ by so many times what the mean may."""
AT_START = "nothing has been learned yet, so look at the policy's weights, its chat template, method.eta or method.beta"
LATER = "look at them, or lower train.lr"
WATCHED = {
    "win probability": "delete the pairs they are from, and the same command makes them again",
    "log-probability under the reference": "delete the artifact they are from, and the same command makes it again",
    "log-probability under the policy": "",
    "loss": "",
}
"""Sums that must be finite, with their remedies; empty: AT_START or LATER. One that is not spoils those below it."""
NOT_LOGGED = WATCHED.keys() - {"loss"}


class StepMetrics:
    """Sums up the packed rows of a step."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.sums: dict[str, Any] = {}
        self.weight_min = math.inf

    def add(self, p: PairLogps, losses: Tensor, counted: Tensor) -> None:
        """Add the pairs of one row; `counted` (pair,) is 0 for those that are none of the step's.

        A non-finite number in such a pair still makes the sum non-finite, because the pair has a gradient.
        """
        losses, chosen, rejected = losses.detach(), p.chosen_logratio.detach(), p.rejected_logratio.detach()
        values = {
            "pairs": torch.ones_like(losses),
            "loss": losses,
            "loss_scaled": losses / self.method.loss_unit,
            "chosen_logratio": chosen,
            "rejected_logratio": rejected,
            "chosen_reward": self.method.beta * chosen,
            "rejected_reward": self.method.beta * rejected,
            "reward_margin": self.method.beta * (chosen - rejected),
            "reward_accuracy": (chosen > rejected).float(),
            "kl_estimate": -(chosen + rejected) / 2,
            "answer_tokens": p.chosen_tokens + p.rejected_tokens,
            "win probability": p.chosen_win + p.rejected_win + p.chosen_beats_rejected,
            "log-probability under the reference": p.ref_chosen + p.ref_rejected,
            "log-probability under the policy": (p.policy_chosen + p.policy_rejected).detach(),
        }
        if isinstance(self.method, Targeted):
            chosen_target, rejected_target = self.method.targets(p)
            values["target_distance"] = ((chosen - chosen_target).abs() + (rejected - rejected_target).abs()) / 2
        if isinstance(self.method, Weighted):
            values["weight"] = weight = self.method.weight(p)
            values["weight_clamped"] = (self.method.clamp & (weight >= 1)).float()
            self.weight_min = min([self.weight_min, *weight[counted > 0].tolist()])
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + (value * counted).sum()

    def end(self) -> dict[str, float]:
        """Return the sums over the pairs of all processes, and the smallest weight. The next step begins with none."""
        totals: Any = reduce(torch.stack([*self.sums.values()]).double(), "sum")
        sums = dict(zip(self.sums, totals.tolist(), strict=True))
        if "weight" in sums:
            sums["weight_min"] = float(gather(torch.tensor([self.weight_min], device=totals.device)).min())  # pyright: ignore
        self.sums, self.weight_min = {}, math.inf
        return sums


def means_of(sums: dict[str, float]) -> dict[str, float]:
    """Return what is logged of a step: its pairs, the means over them, and the smallest weight."""
    means = {name: total / sums["pairs"] for name, total in sums.items() if name not in NOT_LOGGED}
    return means | {name: sums[name] for name in ("pairs", "weight_min") if name in sums}


def check_start(answers: Sequence[tuple[str, float, float]], precision: Precision, rows: Path) -> None:
    """Raise Fault where policy and reference, read from `rows`, differ by more than rounding: none has learned yet.

    `answers` are all of the first step: prompt, log-ratio in nats, tokens. The mean may not differ, nor may a single
    one: what is wrong with long answers alone, say, is lost in the mean.
    """
    for some, times in ((answers, 1), *(([one], EACH) for one in answers)):
        tokens = sum(length for *_, length in some)
        distance = sum(abs(ratio) for _, ratio, _ in some) / tokens
        most = times * (ALLOWED[precision] + ROUNDED[precision] * sum(length**0.5 for *_, length in some) / tokens)
        if not distance <= most:
            where = f" for an answer to prompt {some[0][0]}" if times > 1 else ""
            far = f"{distance:.3g} nats per token from the stored log-probabilities{where}"
            why = f"(at most {most:.3g} in {precision}): wrong reference or wrong template"
            remedy = "delete that folder, and the same command makes it again with this policy"
            raise Fault(f"{rows}: before the first step the policy is {far} {why}; {remedy}")


def expected_first_loss(method: Method, pairs: list[Row]) -> float:
    """Return the mean loss before the first step: log-ratios are zero, and WPO weights are counted as 1."""
    fields = dict.fromkeys(PairLogps._fields, torch.zeros(len(pairs)))
    fields |= dict.fromkeys(("chosen_tokens", "rejected_tokens"), torch.ones(len(pairs)))
    for name in ("chosen_win", "rejected_win", "chosen_beats_rejected"):
        fields[name] = torch.tensor([pair[name] for pair in pairs], dtype=torch.float32)
    return float(method.loss(PairLogps(**fields)).mean())
