"""Packed rows: several prompts with their answers in one row of tokens, no padding, each prompt once.

    | prompt 0 | answer 0 | answer 1 | prompt 1 | answer 0 | answer 1 | ...
      0 .. p-1   p ..       p ..       0 .. p-1   p ..       p ..          positions

An answer sees its prompt and itself. Its last token predicts nothing, so it is left out of the row; its first is
predicted by the last token of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from src.kernel.config import UserError

Ids = list[int]


class Group(NamedTuple):
    """A prompt and the answers that share it."""

    prompt: Ids
    answers: Sequence[Ids]

    @property
    def tokens(self) -> int:
        """Its length in a row."""
        return len(self.prompt) + sum(len(answer) - 1 for answer in self.answers)


class Span(NamedTuple):
    """Where a group lies in its row: lengths in tokens, one after the other."""

    prompt: int
    answers: tuple[int, ...]
    """Each without its last token; 0 for an answer of one token."""


class Packed(NamedTuple):
    """One row of groups; A answers with N tokens in all, numbered group by group."""

    input_ids: Int[Tensor, "1 seq"]
    position_ids: Int[Tensor, "1 seq"]
    spans: tuple[Span, ...]
    predictors: Int[Tensor, " token"]
    """The position of the row that predicts each answer token."""
    labels: Int[Tensor, " token"]
    """The answer tokens."""
    owners: Int[Tensor, " token"]
    """The answer each of them belongs to, 0 to A - 1."""

    def to(self, device: torch.device | str) -> Packed:
        """The same row on another device."""
        return Packed(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.spans,
            self.predictors.to(device),
            self.labels.to(device),
            self.owners.to(device),
        )


def pack(groups: Sequence[Group], multiple: int = 1) -> Packed:
    """Groups in one row, in their order; its length is rounded up to `multiple` with tokens no group sees.

    Raises UserError for an empty prompt or answer.
    """
    ids: Ids = []
    positions: Ids = []
    predictors: Ids = []
    labels: Ids = []
    owners: Ids = []
    answer_number = 0
    for prompt, answers in groups:
        if not prompt or not all(answers):
            raise UserError("pairs: a pair has an empty prompt or answer; drop it before training")
        ids += prompt
        positions += range(len(prompt))
        last_of_prompt = len(ids) - 1
        for answer in answers:
            predictors += [last_of_prompt, *range(len(ids), len(ids) + len(answer) - 1)]
            labels += answer
            owners += [answer_number] * len(answer)
            ids += answer[:-1]
            positions += range(len(prompt), len(prompt) + len(answer) - 1)
            answer_number += 1
    filler = -len(ids) % multiple
    return Packed(
        input_ids=torch.tensor([ids + [0] * filler]),
        position_ids=torch.tensor([positions + list(range(filler))]),
        spans=tuple(Span(len(g.prompt), tuple(len(answer) - 1 for answer in g.answers)) for g in groups),
        predictors=torch.tensor(predictors),
        labels=torch.tensor(labels),
        owners=torch.tensor(owners),
    )
