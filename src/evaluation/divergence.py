"""Divergence: exact KL of the new policy from the base at every position of the new policy's held-out answers.

In: responses of the policy, the policy, the base. Out: `metrics.json` with KL per token and per answer, nats.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from pydantic import PositiveInt

from src.kernel.artifact import WORK, Takes
from src.kernel.config import Device, Free, UserError, config
from src.kernel.rows import NOT_FINITE, RESPONSES, Row, kept_aside, read_rows, write_metrics

if TYPE_CHECKING:
    from torch import Tensor


@config
class Divergence:
    kind: ClassVar[str] = "divergence"
    version: ClassVar[int] = 2
    resumable: ClassVar[bool] = True
    """It keeps nothing but the answers that it refused."""

    prompts: PositiveInt
    """The first so many held-out prompts."""
    device: Free[Device]
    batch_answers: Free[PositiveInt]
    head_chunk: Free[PositiveInt]
    """Answer tokens that meet the LM heads at a time."""

    def takes(self) -> Takes:
        return Takes("hardware.devices.device", cuda=self.device == "cuda")

    def __call__(self, *inputs: Path, out: Path) -> None:
        import torch

        rows = read_rows(inputs[0], RESPONSES)[: self.prompts]
        policy, base = (self._score(folder, rows) for folder in inputs[1:])
        with torch.inference_mode():
            kl = torch.cat([self._token_kl(policy, base, chunk) for chunk in range(len(base.states))])
        counts = [len(row["responses"][0]["token_ids"]) for row in rows]
        per_answer = [float(part.sum()) for part in kl.split(counts)]
        with kept_aside(rows, RESPONSES, out / WORK):
            _refuse_faulty(rows, per_answer)
        metrics = {
            "kl_per_token": float(np.sum(per_answer) / np.sum(counts)),
            "kl_per_answer": float(np.mean(per_answer)),
            "prompts": len(rows),
        }
        write_metrics(out, metrics)

    def _score(self, folder: Path, rows: list[Row]) -> _Scored:
        """One policy over all answers; only its head is left of it, so that one is in memory at a time."""
        import torch

        from src.modeling.logps import answer_states, head_of, make_scorer
        from src.modeling.packing import Group, pack
        from src.modeling.policy import load_policy

        # fp32: one iteration moves most weights by less than a bf16 step.
        model, states = make_scorer(load_policy(folder, "float32", self.device)), []
        groups = [Group(row["prompt_token_ids"], [row["responses"][0]["token_ids"]]) for row in rows]
        with torch.inference_mode():
            for start in range(0, len(groups), self.batch_answers):
                packed = pack(groups[start : start + self.batch_answers]).to(self.device)
                states += [chunk.cpu() for chunk in answer_states(model, packed).split(self.head_chunk)]
        return _Scored(states, *head_of(model))

    def _token_kl(self, policy: _Scored, base: _Scored, chunk: int) -> Tensor:
        """KL(policy || base) (token,) in nats."""
        from src.modeling.head import capped_logits

        log_policy, log_base = (
            capped_logits(scored.states[chunk].to(self.device), scored.head, scored.softcap).log_softmax(-1)
            for scored in (policy, base)
        )
        return (log_policy.exp() * (log_policy - log_base)).sum(-1)


def _refuse_faulty(rows: list[Row], kl: list[float]) -> None:
    for row, value in zip(rows, kl, strict=True):
        if not math.isfinite(value):
            raise UserError(
                f"divergence: KL of the policy from the base is {NOT_FINITE} for the answer to prompt "
                f"{row['prompt_id']}; look at what trained the policy"
            )


class _Scored(NamedTuple):
    """Last hidden states (token, width) of all answers, in chunks, on the CPU; and the head they meet."""

    states: list[Tensor]
    head: Tensor
    softcap: float | None
