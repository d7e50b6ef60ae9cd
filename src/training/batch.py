"""The pairs of an optimiser step as the packed rows of one process."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import BatchSampler

from src.kernel.rows import Row
from src.methods.method import PairLogps
from src.modeling.logps import AnswerLogps
from src.modeling.packing import Group, Packed, deal, pack
from src.training.recipe import Lengths


class PairBatch(NamedTuple):
    """B pairs in one packed row; answers 2b and 2b + 1 are pair b's chosen and rejected."""

    packed: Packed
    ref_logp: Float[Tensor, "pair 2"]
    """log pi_t of chosen and rejected under the reference, nats."""
    win: Float[Tensor, "pair 2"]
    """P(y > pi_t) of chosen and rejected."""
    chosen_beats_rejected: Float[Tensor, " pair"]
    """P(y_w > y_l)."""
    counted: Float[Tensor, " pair"]
    """1; 0 for a pair that only keeps this process in step with the others."""

    def to(self, device: torch.device | str) -> PairBatch:
        ref_logp, win, beats, counted = (part.to(device) for part in self[1:])
        return PairBatch(self.packed.to(device), ref_logp, win, beats, counted)


class Step(NamedTuple):
    """An optimiser step, as one process computes it."""

    batches: list[PairBatch]
    """The rows of this process, as many as every other one has."""
    places: list[int]
    """The places among `pairs` of what its rows hold, row by row, without fillers."""
    pairs: list[Row]
    """The pairs of the whole step, over all processes."""
    groups: list[Group]
    """The same pairs cut to the limits; fillers are not among them."""

    @property
    def tokens(self) -> int:
        """The tokens computed by all processes."""
        return sum(group.tokens for group in self.groups)


def pair_up(logps: AnswerLogps, batch: PairBatch) -> PairLogps:
    """Arrange the answers of a row as pairs."""
    policy, ref, tokens, log_weight, win = (
        values.view(-1, 2).T for values in (logps.logp, batch.ref_logp, logps.tokens, logps.log_weight, batch.win)
    )
    return PairLogps._make([*policy, *ref, *tokens, *log_weight, *win, batch.chosen_beats_rejected])


def collate(pairs: list[Row], lengths: Lengths, multiple: int = 1, counted: bool = True) -> PairBatch:
    """Pack rows of REFERENCE into one row, its length a multiple of `multiple`."""

    def column(*names: str) -> Tensor:
        return torch.tensor([[pair[name] for name in names] for pair in pairs], dtype=torch.float32)

    return PairBatch(
        packed=pack([lengths.group(pair) for pair in pairs], multiple),
        ref_logp=column("ref_chosen_logp", "ref_rejected_logp"),
        win=column("chosen_win", "rejected_win"),
        chosen_beats_rejected=column("chosen_beats_rejected").squeeze(1),
        counted=torch.full((len(pairs),), float(counted)),
    )


@dataclasses.dataclass(frozen=True)
class Collator:
    """Makes a Step of all its pairs: the part of process `rank` of `processes`. Every process gets the same pairs."""

    lengths: Lengths
    row_tokens: int
    rank: int = 0
    processes: int = 1
    multiple: int = 1

    def __call__(self, pairs: list[Row]) -> Step:
        groups = [self.lengths.group(pair) for pair in pairs]
        tokens = [group.tokens for group in groups]
        rows = deal(tokens, self.processes, self.row_tokens)[self.rank]
        filler = pairs[tokens.index(min(tokens))]
        batches = [collate([pairs[i] for i in row] or [filler], self.lengths, self.multiple, bool(row)) for row in rows]
        return Step(batches, [i for row in rows for i in row], pairs, groups)


class StepSampler(BatchSampler):
    """The pairs of each step; Trainer sets the epoch here when it resumes inside one."""

    def set_epoch(self, epoch: int) -> None:
        sampler: Any = self.sampler
        sampler.set_epoch(epoch)
