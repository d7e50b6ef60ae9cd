"""The metrics of a training step: means over all its pairs, and how fast it went."""

from __future__ import annotations

import math
import resource
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from src.kernel.rows import SPEED, Row
from src.methods.method import Method, PairLogps, Targeted, Weighted

if TYPE_CHECKING:
    from accelerate import Accelerator

    from src.training.batch import Step


class StepMetrics:
    """Sums up the packed rows of a step; when it is logged, gives means over the pairs of all processes."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.sums: dict[str, Any] = {}
        self.weight_min = math.inf

    def add(self, p: PairLogps, losses: Tensor, counted: Tensor) -> None:
        """Add the pairs of one row; `counted` (pair,) is 0 for those that are none of the step's."""
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

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over the pairs of all processes since the last call."""
        totals: Any = accelerator.reduce(torch.stack([*self.sums.values()]).double(), "sum")
        sums = dict(zip(self.sums, totals.tolist(), strict=True))
        pairs = sums.pop("pairs")
        means = {"pairs": pairs} | {name: total / pairs for name, total in sums.items()}
        if "weight" in means:
            lowest: Any = accelerator.gather(torch.tensor([self.weight_min], device=accelerator.device))
            means["weight_min"] = float(lowest.min())
        self.sums, self.weight_min = {}, math.inf
        return means


class StepClock:
    """Measures time and memory of a step; every figure but `tokens` and `tokens_saved` depends on the machine."""

    def __init__(self, flops_per_s: float | None) -> None:
        """`flops_per_s` is the peak of all devices together; None leaves out the utilisation."""
        self.flops_per_s = flops_per_s
        self.started = self.last = self.flops = self.waited = 0.0
        self.steps = 0
        self.step: Step | None = None

    def begin(self, step: Step, flops: float, waited: float) -> None:
        """Begin a step of `flops` operations, whose batch took `waited` seconds to come."""
        if self.step is None:
            self.started = self.last = time.monotonic() - waited
        self.step, self.flops, self.waited = step, flops, waited

    def take(self, steps_left: int, accelerator: Accelerator) -> dict[str, float]:
        """Return the figures of the step that ends now."""
        assert self.step is not None
        now = time.monotonic()
        seconds, self.last = now - self.last, now
        self.steps += 1
        if accelerator.device.type == "cuda":
            peak_gb = torch.cuda.max_memory_allocated(accelerator.device) / 1e9
        else:
            peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        memory: Any = accelerator.gather(torch.tensor([peak_gb], device=accelerator.device))
        figures = {
            "seconds": seconds,
            "tokens_per_s": self.step.tokens / seconds,
            "data_wait_s": self.waited,
            "memory_gb": float(memory.max()),
            "eta_s": steps_left * (now - self.started) / self.steps,
        }
        if self.flops_per_s:
            figures["mfu"] = self.flops / seconds / self.flops_per_s
        figures = {SPEED + name: round(value, 4) for name, value in figures.items()}
        return {"tokens": self.step.tokens, "tokens_saved": 1 - self.step.tokens / self.step.unshared_tokens} | figures


def expected_first_loss(method: Method, pairs: list[Row]) -> float:
    """Return the mean loss before the first step: log-ratios are zero, and WPO weights are counted as 1."""
    fields = dict.fromkeys(PairLogps._fields, torch.zeros(len(pairs)))
    fields |= dict.fromkeys(("chosen_tokens", "rejected_tokens"), torch.ones(len(pairs)))
    for name in ("chosen_win", "rejected_win", "chosen_beats_rejected"):
        fields[name] = torch.tensor([pair[name] for pair in pairs], dtype=torch.float32)
    return float(method.loss(PairLogps(**fields)).mean())
