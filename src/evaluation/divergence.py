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

    from src.logps import Rows


@config
class Divergence:
    kind: ClassVar[str] = "divergence"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    prompts: PositiveInt
    """The first so many held-out prompts."""
    device: Free[Device]
    batch_answers: Free[PositiveInt]
    head_chunk: Free[PositiveInt]
    """Answer tokens that meet the LM heads at a time."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        from src.model import load_policy

        rows = records.read_rows(inputs[0], records.RESPONSES)[: self.prompts]
        # fp32: one iteration moves most weights by less than a bf16 step.
        models = [load_policy(folder, "float32", self.device) for folder in inputs[1:]]
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

        from src.logps import Rows, pad_rows

        padded = pad_rows([(row["prompt_token_ids"], row["responses"][0]["token_ids"]) for row in rows])
        batch = Rows(*(t.to(self.device) for t in padded))
        with torch.inference_mode():
            hidden = zip(*(_answer_states(model, batch).split(self.head_chunk) for model in models), strict=True)
            kl = torch.cat([_token_kl(models, states) for states in hidden])
        counts = batch.answer_mask.sum(1).tolist()
        return [float(part.sum()) for part in kl.split(counts)], counts


def _answer_states(model: PreTrainedModel, rows: Rows) -> Tensor:
    """Last hidden states (answer token, width) that predict the answers' tokens, row after row."""
    from src.logps import hidden_states

    return hidden_states(model, rows.input_ids, rows.attention_mask)[:, :-1][rows.answer_mask[:, 1:]]


def _token_kl(models: list[PreTrainedModel], states: tuple[Tensor, ...]) -> Tensor:
    """KL(policy || base) (token,) in nats."""
    from src.logps import capped_logits, head_of

    policy, base = (
        capped_logits(hidden, *head_of(model)).log_softmax(-1) for model, hidden in zip(models, states, strict=True)
    )
    return (policy.exp() * (policy - base)).sum(-1)
