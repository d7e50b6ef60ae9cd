"""The pairs of an optimiser step as the packed rows of one process."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from src.kernel.rows import Row
from src.methods.method import PairLogps
from src.modeling.logps import AnswerLogps
from src.modeling.packing import Group, Packed, deal, pack
from src.training.recipe import Lengths

SIDES = ("chosen", "rejected")


class PairBatch(NamedTuple):
    """B pairs in one packed row; answers 2b and 2b + 1 are pair b's chosen and rejected."""

    packed: Packed
    ref_logp: Tensor
    """(B, 2) log-probabilities of chosen and rejected under the reference, nats."""
    win: Tensor
    """(B, 2) P(y > pi_t)."""
    chosen_beats_rejected: Tensor
    """(B,)"""
    counted: Tensor
    """(B,) 1; 0 for a pair that only keeps this process in step with the others."""

    def to(self, device: torch.device | str) -> PairBatch:
        ref_logp, win, beats, counted = (part.to(device) for part in self[1:])
        return PairBatch(self.packed.to(device), ref_logp, win, beats, counted)


class Step(NamedTuple):
    """What one process computes in an optimiser step."""

    batches: list[PairBatch]
    """As many in every process."""
    pairs: list[Row]
    """Those of the whole step, over all processes."""
    groups: list[Group]
    """The same pairs within the limits; fillers are none."""

    @property
    def tokens(self) -> int:
        """Tokens computed by all processes."""
        return sum(group.tokens for group in self.groups)

    @property
    def unshared_tokens(self) -> int:
        """Tokens to compute if each answer had a prompt of its own."""
        return self.tokens + sum(len(group.prompt) for group in self.groups)


def pair_up(logps: AnswerLogps, batch: PairBatch) -> PairLogps:
    """Arranges the answers of a row as pairs."""
    policy, ref, tokens, log_weight, win = (
        values.view(-1, 2).T for values in (logps.logp, batch.ref_logp, logps.tokens, logps.log_weight, batch.win)
    )
    return PairLogps._make([*policy, *ref, *tokens, *log_weight, *win, batch.chosen_beats_rejected])


def group_of(pair: Row, lengths: Lengths) -> Group:
    """Cuts a row of PAIRS to the limits. Raises UserError for an empty answer."""
    fit = lengths.fit_pair(pair)
    return Group(fit.prompt, [fit.chosen, fit.rejected])


def collate(pairs: list[Row], lengths: Lengths, multiple: int = 1, counted: bool = True) -> PairBatch:
    """Packs REFERENCE rows into one row, its length a multiple of `multiple`."""
    return PairBatch(
        packed=pack([group_of(pair, lengths) for pair in pairs], multiple),
        ref_logp=torch.tensor([[p[f"ref_{side}_logp"] for side in SIDES] for p in pairs], dtype=torch.float32),
        win=torch.tensor([[p[f"{side}_win"] for side in SIDES] for p in pairs], dtype=torch.float32),
        chosen_beats_rejected=torch.tensor([p["chosen_beats_rejected"] for p in pairs], dtype=torch.float32),
        counted=torch.full((len(pairs),), float(counted)),
    )


@dataclasses.dataclass(frozen=True)
class Collator:
    """All pairs of a step -> the part of process `rank` of `processes`. Every process gets the same pairs."""

    lengths: Lengths
    row_tokens: int
    rank: int = 0
    processes: int = 1
    multiple: int = 1

    def __call__(self, pairs: list[Row]) -> Step:
        groups = [group_of(pair, self.lengths) for pair in pairs]
        tokens = [group.tokens for group in groups]
        mine = deal(tokens, self.processes, self.row_tokens)[self.rank]
        filler = pairs[tokens.index(min(tokens))]
        return Step(
            batches=[
                collate([pairs[i] for i in row] or [filler], self.lengths, self.multiple, counted=bool(row))
                for row in mine
            ],
            pairs=pairs,
            groups=groups,
        )


def rows_of(pairs: list[Row]) -> Dataset:
    """Wraps REFERENCE rows as the data set that Trainer takes."""
    return _Rows(pairs)


def step_loader(rows: Dataset, seed: int, batch_pairs: int, collator: Collator) -> DataLoader:
    """Steps of `batch_pairs`, the last of an epoch with what is left."""
    sized: Any = rows
    order = SeedableRandomSampler(sized, data_seed=seed)
    return _Steps(rows, batch_sampler=StepSampler(order, batch_pairs, False), collate_fn=collator)


class StepSampler(BatchSampler):
    """Pairs of each step; Trainer sets the epoch here when it resumes inside one."""

    def set_epoch(self, epoch: int) -> None:
        sampler: Any = self.sampler
        sampler.set_epoch(epoch)


class _Steps(DataLoader):
    def set_epoch(self, epoch: int) -> None:
        sampler: Any = self.batch_sampler
        sampler.set_epoch(epoch)


class _Rows(Dataset):
    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]
