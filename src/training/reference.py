"""Reference: log-probabilities of the pairs under the iteration's starting policy, computed once and stored.

In: pairs, policy. Out: REFERENCE rows, in the order of the pairs, and `metrics.json`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveInt

from src.kernel.artifact import WORK, Takes
from src.kernel.cells import Cells
from src.kernel.config import Device, Free, UserError, config
from src.kernel.processes import bar
from src.kernel.rows import NOT_FINITE, PAIRS, REFERENCE, Row, read_rows, write_metrics, write_rows
from src.modeling.packing import pack, row_multiple
from src.modeling.policy import AttentionKind, Precision, load_policy
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
    """The type of matrix products; the weights are fp32, as in training, so that log-ratios start at zero."""
    device: Free[Device]
    batch_pairs: Free[PositiveInt]
    head_chunk: Free[PositiveInt]
    """Answer tokens that meet the LM head at a time."""
    attention: Free[AttentionKind]
    """The value of training, so that bf16 rounds alike."""

    def takes(self) -> Takes:
        return Takes("hardware.devices.device", cuda=self.device == "cuda")

    def __call__(self, *inputs: Path, out: Path) -> None:
        from src.modeling.logps import make_scorer

        pairs_folder, policy = inputs
        pairs = read_rows(pairs_folder, PAIRS)
        model = make_scorer(load_policy(policy, "float32", self.device))
        done = Cells(out / WORK)
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i]["prompt_token_ids"]))
        with bar("reference", len(pairs), len(done.values), "pair") as progress:
            for start in range(0, len(order), self.batch_pairs):
                batch = [i for i in order[start : start + self.batch_pairs] if i not in done.values]
                if batch:
                    done.add(dict(zip(batch, self._score(model, [pairs[i] for i in batch]), strict=True)))
                    progress.update(len(batch))
        write_rows(out, (pair | done.values[i] for i, pair in enumerate(pairs)), REFERENCE)
        write_metrics(out, count_cut(pairs, self.lengths))

    def _score(self, model: PreTrainedModel, pairs: list[Row]) -> list[Row]:
        """Return the columns that REFERENCE adds. Raises UserError where a number is not finite, before it is kept."""
        import torch

        from src.modeling.logps import answer_logps

        multiple = row_multiple(self.attention, self.batch_pairs * 2 * self.lengths.max_total)
        packed = pack([self.lengths.group(pair) for pair in pairs], multiple).to(self.device)
        autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        with torch.no_grad(), autocast:
            logps = answer_logps(model, packed, chunk=self.head_chunk, attention=self.attention)
        columns = ("ref_chosen_logp", "ref_rejected_logp")
        rows: list[Row] = [dict(zip(columns, sums, strict=True)) for sums in logps.logp.view(-1, 2).tolist()]
        for pair, row in zip(pairs, rows, strict=True):
            if not all(map(math.isfinite, row.values())):
                what = f"the policy's log-probability is {NOT_FINITE} for an answer to prompt {pair['prompt_id']}"
                remedy = "look at what trained it, or try hardware.devices.precision=float32"
                raise UserError(f"reference: {what}; {remedy}")
        return rows


def count_cut(pairs: list[Row], lengths: Lengths) -> dict[str, int]:
    """Count the prompts and answers that `lengths` cuts in training, and print the numbers when there are any."""
    prompts = answers = 0
    for pair in pairs:
        prompt, (chosen, rejected) = lengths.group(pair)
        prompts += len(prompt) < len(pair["prompt_token_ids"])
        answers += len(chosen) < len(pair["chosen_token_ids"])
        answers += len(rejected) < len(pair["rejected_token_ids"])
    if prompts or answers:
        print(f"reference: train.lengths cuts {prompts} of {len(pairs)} prompts, {answers} of {2 * len(pairs)} answers")
    return {"pairs": len(pairs), "prompts_cut": prompts, "answers_cut": answers}
