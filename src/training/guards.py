"""Stops a training before a step counts, for numbers that are not finite and for a reference of another policy.

All processes look together, and all stop.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from src.kernel.config import Fault, UserError
from src.kernel.rows import REFERENCE, ROWS, write_rows
from src.modeling.policy import Precision
from src.training.checkpoints import highest

if TYPE_CHECKING:
    from accelerate import Accelerator

    from src.methods.method import PairLogps
    from src.training.batch import Step

ASIDE = "not_finite"
"""The folder, in the working folder of an unfinished artifact, of the pairs of a step without a finite number."""
ALLOWED: dict[Precision, float] = {"float32": 0.001, "bfloat16": 0.005}
"""Nats a token by which policy and reference may differ before the first step (measured: docs/trainer.md)."""
ROUNDED: dict[Precision, float] = {"float32": 0.0, "bfloat16": 0.1}
"""Nats more for an answer of one token; rounding goes either way, so an answer of n tokens may have sqrt(n) of it."""
WATCHED = ("loss", "log-probability under the policy", "log-probability under the reference", "win probability")
"""What must be finite. Where several are not, the last one is named: the others follow from it."""
ADVICE = {
    "log-probability under the reference": "delete the artifact they are from, and the same command makes it again",
    "win probability": "delete the pairs they are from, and the same command makes them again",
}
"""The remedies; without one here, the policy or its learning rate is at fault."""


class Guards:
    """Looks at the rows of a step, and at its end waits once for the device and for the other processes."""

    def __init__(self, precision: Precision, work: Path, reference: Path | None, accelerator: Accelerator) -> None:
        """`reference` is the artifact to be compared with the policy before the first step; None: there is none."""
        self.precision: Precision = precision
        self.work, self.reference, self.accelerator = work, reference, accelerator
        self.rows: list[tuple[Tensor, Tensor]] = []

    def add(self, p: PairLogps, counted: Tensor, loss: Tensor) -> None:
        """Add a row and its mean loss. Pairs that are not `counted` are looked at too, for they have gradients."""
        policy, reference = (torch.cat(both).detach() for both in (p[:2], p[2:4]))
        tokens = torch.cat([p.chosen_tokens, p.rejected_tokens])
        wins = torch.cat([p.chosen_win, p.rejected_win, p.chosen_beats_rejected])
        faulty = torch.stack([~values.isfinite().all() for values in (loss.detach(), policy, reference, wins)])
        self.rows.append((faulty, difference(policy, reference, tokens, counted.repeat(2))))

    def end(self, step: Step, done: int) -> None:
        """End a step, before the weights move; `done` steps are behind it. Raises UserError for numbers not finite."""
        faulty, sums = (torch.stack(parts).sum(0) for parts in zip(*self.rows, strict=True))
        self.rows = []
        if worst := highest(max((i for i, count in enumerate(faulty.tolist(), 1) if count), default=0)):
            self._refuse(WATCHED[worst - 1], step, done)
        if self.reference and done == 0:
            total: Any = self.accelerator.reduce(sums, "sum")
            nats, tokens, roots = total.tolist()
            most = ALLOWED[self.precision] + ROUNDED[self.precision] * roots / tokens
            if not nats / tokens <= most:
                raise Fault(
                    f"{self.reference / ROWS}: before the first step the policy is {nats / tokens:.3g} nats a token "
                    f"from what is told here (at most {most:.3g} in {self.precision}): wrong reference or wrong "
                    "template; delete that folder, and the same command makes it again with this policy"
                )

    def check_gradient(self, norm: float, step: Step, done: int) -> None:
        # DeepSpeed's versions say inf or -1 for a norm that is not finite
        if highest(not 0 <= norm < float("inf")):
            self._refuse("gradient", step, done)

    def _refuse(self, what: str, step: Step, done: int) -> None:
        aside = self.work / ASIDE
        if self.accelerator.is_main_process:
            aside.mkdir(parents=True, exist_ok=True)
            write_rows(aside, step.pairs, REFERENCE)  # a training can begin with them
        raise UserError(
            f"train: the {what} is not finite at step {done}; its pairs are in {aside / ROWS}; "
            f"{ADVICE.get(what, 'look at them, or lower train.lr')}"
        )


def difference(policy: Tensor, reference: Tensor, tokens: Tensor, counted: Tensor) -> Tensor:
    """Return sums over answers: |log-ratio| in nats, tokens, and square roots of their tokens."""
    parts = ((policy - reference).abs(), tokens, tokens.sqrt())
    return torch.stack([(part.double() * counted).sum() for part in parts])
