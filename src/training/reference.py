"""Reference: log-probabilities of the pairs under the iteration's starting policy, computed once and stored.

In: pairs, policy. Out: REFERENCE rows, in the order of the pairs, and `metrics.json`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveInt

from src.kernel.artifact import WORK, Takes
from src.kernel.config import Device, Free, UserError, config
from src.kernel.processes import bar
from src.kernel.rows import NOT_FINITE, PAIRS, REFERENCE, Journal, Row, kept_aside, read_rows, write_metrics, write_rows
from src.modeling.policy import AttentionKind, Precision
from src.training.recipe import Lengths

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@config
class Reference:
    kind: ClassVar[str] = "reference"
    version: ClassVar[int] = 2
    resumable: ClassVar[bool] = True

    lengths: Lengths
    precision: Precision
    """Of the matrix products; the weights are fp32, as in training, so that log-ratios start at zero."""
    device: Free[Device]
    batch_pairs: Free[PositiveInt]
    head_chunk: Free[PositiveInt]
    """Answer tokens that meet the LM head at a time."""
    attention: Free[AttentionKind]
    """As in training, so that bf16 rounds alike."""

    def takes(self) -> Takes:
        return Takes("hardware.devices.device", cuda=self.device == "cuda")

    def __call__(self, *inputs: Path, out: Path) -> None:
        from src.modeling.logps import make_scorer
        from src.modeling.policy import load_policy

        pairs_folder, policy = inputs
        pairs = read_rows(pairs_folder, PAIRS)
        model = make_scorer(load_policy(policy, "float32", self.device))
        done = Journal(out / WORK)
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i]["prompt_token_ids"]))
        aside = kept_aside(pairs, PAIRS, out / WORK)
        with aside, bar("reference", len(pairs), len(done.rows), "pair") as progress:
            for start in range(0, len(order), self.batch_pairs):
                batch = [i for i in order[start : start + self.batch_pairs] if i not in done.rows]
                if batch:
                    done.add(zip(batch, self._score(model, [pairs[i] for i in batch]), strict=True))
                    progress.update(len(batch))
        write_rows(out, (pair | done.rows[i] for i, pair in enumerate(pairs)), REFERENCE)
        write_metrics(out, count_cut(pairs, self.lengths))

    def _score(self, model: PreTrainedModel, pairs: list[Row]) -> list[Row]:
        import torch

        from src.modeling.logps import answer_logps
        from src.modeling.packing import pack, row_multiple
        from src.training.batch import group_of

        multiple = row_multiple(self.attention, self.batch_pairs * 2 * self.lengths.max_total)
        packed = pack([group_of(pair, self.lengths) for pair in pairs], multiple).to(self.device)
        autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        with torch.no_grad(), autocast:
            logps = answer_logps(model, packed, chunk=self.head_chunk, attention=self.attention)
        both = logps.logp.view(-1, 2).tolist()
        return [logp_columns(pair["prompt_id"], *sums) for pair, sums in zip(pairs, both, strict=True)]


def logp_columns(prompt_id: str, chosen: float, rejected: float) -> Row:
    """Returns the columns that a REFERENCE row adds. Raises UserError where one is not finite, before it is kept."""
    for side, logp in {"chosen": chosen, "rejected": rejected}.items():
        if not math.isfinite(logp):
            raise UserError(
                f"reference: the policy's log-probability is {NOT_FINITE} for prompt {prompt_id}, {side} answer; look "
                "at what trained it, or try hardware.devices.precision=float32"
            )
    return {"ref_chosen_logp": chosen, "ref_rejected_logp": rejected}


def count_cut(pairs: list[Row], lengths: Lengths) -> dict[str, int]:
    """Counts the prompts and answers that `lengths` cuts in training, and prints the numbers when there are any."""
    kept = [(pair, lengths.fit_pair(pair)) for pair in pairs]
    prompts = sum(len(fit.prompt) < len(pair["prompt_token_ids"]) for pair, fit in kept)
    chosen = sum(len(fit.chosen) < len(pair["chosen_token_ids"]) for pair, fit in kept)
    answers = chosen + sum(len(fit.rejected) < len(pair["rejected_token_ids"]) for pair, fit in kept)
    if prompts or answers:
        print(f"reference: train.lengths cuts {prompts} of {len(pairs)} prompts, {answers} of {2 * len(pairs)} answers")
    return {"pairs": len(pairs), "prompts_cut": prompts, "answers_cut": answers}
