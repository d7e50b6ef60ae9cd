"""Prompts and their answers in one packed row, and which pair of an optimiser step goes to which row."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Int

from src.kernel.config import UserError
from src.modeling.policy import AttentionKind, rope_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Ids = list[int]
PACKABLE = ("llama", "mistral", "gemma2")
"""Architectures whose packed rows the tests compare with plain transformers."""
ROPE_OF_A_ROW = ("dynamic", "longrope")
"""Rotary embeddings that depend on the longest position of a row, so on a neighbour."""


class Group(NamedTuple):
    """A prompt and the answers that share it."""

    prompt: Ids
    answers: Sequence[Ids]

    @property
    def tokens(self) -> int:
        """The group's length in a row, in tokens."""
        return len(self.prompt) + sum(len(answer) - 1 for answer in self.answers)


class Span(NamedTuple):
    """The place of a group in its row: lengths in tokens, one after the other."""

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
    """The answer that each answer token belongs to, 0 to A - 1."""

    def to(self, device: torch.device | str) -> Packed:
        """Copy the row to another device."""
        return self._replace(**{name: part.to(device) for name, part in self._asdict().items() if name != "spans"})


def pack(groups: Sequence[Group], multiple: int = 1) -> Packed:
    """Put groups into one row, in their order; its length is rounded up to `multiple` with tokens no group sees.

    Raises UserError for an empty prompt or answer.
    """
    import torch

    ids, positions, predictors, labels, owners = [], [], [], [], []
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


def deal(tokens: Sequence[int], processes: int, row_tokens: int) -> list[list[list[int]]]:
    """Give pair i, `tokens[i]` long, to one row of one process; rows hold up to `row_tokens`.

    Returns, for each process, its rows; a row is the indices of its pairs.

    Every process gets the same number of rows, as few as will do, of lengths as equal as the largest-first rule makes
    them. A pair longer than `row_tokens` has a row of its own; where pairs are few, rows stay empty.
    """
    most = math.ceil(len(tokens) / processes)
    count = min(most, math.ceil(sum(min(n, row_tokens) for n in tokens) / (processes * row_tokens)))
    while True:
        rows = _spread(tokens, processes * count)
        if all(len(row) < 2 or sum(tokens[i] for i in row) <= row_tokens for row in rows):
            return [rows[process::processes] for process in range(processes)]
        count += 1


def row_multiple(kind: AttentionKind, row_tokens: int) -> int:
    """Return what a row's length is rounded up to: a compiled kernel meets at most 8 lengths up to `row_tokens`."""
    return 1 if kind == "segments" else 128 * math.ceil(row_tokens / 1024)


def _spread(tokens: Sequence[int], count: int) -> list[list[int]]:
    """Fill `count` rows: the longest pair first, each into the row that is shortest so far."""
    rows: list[list[int]] = [[] for _ in range(count)]
    shortest = [(0, number) for number in range(count)]
    for i in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        filled, number = heapq.heappop(shortest)
        rows[number].append(i)
        heapq.heappush(shortest, (filled + tokens[i], number))
    return rows


def refuse_unpackable(settings: dict[str, Any]) -> None:
    """Raise UserError for a model (`config.json`, or its settings in transformers) whose packed rows are not exact."""
    kind = settings.get("model_type")
    if kind not in PACKABLE:
        raise UserError(f"model: {kind} is not supported; supported: {', '.join(PACKABLE)}")
    if settings.get("attention_dropout"):
        raise UserError("model: config.json asks for attention dropout; set attention_dropout to 0")
    rope = rope_of(settings)
    rope_type = rope.get("rope_type", rope.get("type"))
    if rope_type in ROPE_OF_A_ROW:
        what = f"{rope_type} rotary embeddings, which packed rows cannot have"
        raise UserError(f"model: config.json asks for {what}; name another model")
