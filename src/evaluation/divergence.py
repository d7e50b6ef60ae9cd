"""Divergence: exact KL of the new policy from the base at every position of the new policy's held-out answers.

In: responses of the policy, the policy, the base. Out: `metrics.json` with KL per token and per answer, nats.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import PositiveInt

from src import records
from src.config import Device, Free, config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@config
class Divergence:
    kind: ClassVar[str] = "divergence"
    version: ClassVar[int] = 2
    resumable: ClassVar[bool] = False

    prompts: PositiveInt
    """The first so many held-out prompts."""
    device: Free[Device]
    batch_answers: Free[PositiveInt]
    head_chunk: Free[PositiveInt]
    """Answer tokens that meet the LM heads at a time."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        from src.logps import make_scorer
        from src.model import load_policy

        rows = records.read_rows(inputs[0], records.RESPONSES)[: self.prompts]
        # fp32: one iteration moves most weights by less than a bf16 step.
        models = [make_scorer(load_policy(folder, "float32", self.device)) for folder in inputs[1:]]
        per_answer, tokens = [], []
        for start in range(0, len(rows), self.batch_answers):
            kl, count = self._kl(models, rows[start : start + self.batch_answers])
            per_answer += kl
            tokens += count
        metrics = {
            "kl_per_token": float(np.sum(per_answer) / np.sum(tokens)),
            "kl_per_answer": float(np.mean(per_answer)),
            "prompts": len(rows),
        }
        (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")

    def _kl(self, models: list[PreTrainedModel], rows: list[records.Row]) -> tuple[list[float], list[int]]:
        """Sum over the answer's positions of KL(policy || base), and the number of positions, for each row."""
        import torch

        from src.logps import answer_states
        from src.packed import Group, pack

        answers = [row["responses"][0]["token_ids"] for row in rows]
        groups = [Group(row["prompt_token_ids"], [answer]) for row, answer in zip(rows, answers, strict=True)]
        packed = pack(groups).to(self.device)
        with torch.inference_mode():
            states = zip(*(answer_states(model, packed).split(self.head_chunk) for model in models), strict=True)
            kl = torch.cat([_token_kl(models, chunk) for chunk in states])
        counts = [len(answer) for answer in answers]
        return [float(part.sum()) for part in kl.split(counts)], counts


def _token_kl(models: list[PreTrainedModel], states: tuple[Tensor, ...]) -> Tensor:
    """KL(policy || base) (token,) in nats."""
    from src.chunked_head import capped_logits
    from src.logps import head_of

    policy, base = (
        capped_logits(hidden, *head_of(model)).log_softmax(-1) for model, hidden in zip(models, states, strict=True)
    )
    return (policy.exp() * (policy - base)).sum(-1)
