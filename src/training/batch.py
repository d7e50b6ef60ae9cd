"""Pairs as tensors: the padded batch. Packing will replace `collate` alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from src.logps import Rows, pad_rows
from src.records import Row
from src.training.lengths import Lengths

SIDES = ("chosen", "rejected")


class PairBatch(NamedTuple):
    """B pairs as 2B rows: all chosen answers, then all rejected ones."""

    rows: Rows
    ref_logp: Tensor
    """(2B,) log-probabilities under the reference, nats."""
    win: Tensor
    """(2B,) P(y > pi_t)."""
    chosen_beats_rejected: Tensor
    """(B,)"""


def sequences_of(pairs: list[Row], lengths: Lengths) -> list[tuple[list[int], list[int]]]:
    """The 2B (prompt, answer) of B pairs: chosen first."""
    return [lengths.fit(p["prompt_token_ids"], p[f"{side}_token_ids"]) for side in SIDES for p in pairs]


def collate(pairs: list[Row], lengths: Lengths) -> PairBatch:
    """A padded batch of REFERENCE rows."""
    return PairBatch(
        rows=pad_rows(sequences_of(pairs, lengths)),
        ref_logp=torch.tensor([p[f"ref_{side}_logp"] for side in SIDES for p in pairs], dtype=torch.float32),
        win=torch.tensor([p[f"{side}_win"] for side in SIDES for p in pairs], dtype=torch.float32),
        chosen_beats_rejected=torch.tensor([p["chosen_beats_rejected"] for p in pairs], dtype=torch.float32),
    )
