"""Whole optimiser steps for Trainer to iterate over: the same in every process, in an order of seed and epoch."""

from __future__ import annotations

from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import BatchSampler, DataLoader, Dataset

from src.kernel.rows import Row
from src.training.batch import Collator


def rows_of(pairs: list[Row]) -> Dataset:
    """REFERENCE rows as what Trainer takes."""
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
