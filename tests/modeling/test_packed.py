"""Packed rows: what a row holds, and how pairs are dealt to processes and rows."""

from __future__ import annotations

import random
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_training import LENGTHS

from src.kernel.config import UserError
from src.modeling.packing import Group, _spread, deal, pack, row_multiple
from src.training.batch import Collator

IDS = st.lists(st.integers(0, 99), min_size=1, max_size=12)
GROUPS = st.lists(st.builds(Group, IDS, st.lists(IDS, min_size=1, max_size=4)), min_size=1, max_size=5)


@given(GROUPS, st.sampled_from([1, 7, 128]))
def test_a_row_holds_each_prompt_once_and_answers_without_their_last_token(groups: list[Group], multiple: int) -> None:
    parts = [part for prompt, answers in groups for part in (prompt, *(answer[:-1] for answer in answers))]
    ids = list(chain.from_iterable(parts))
    row = pack(groups, multiple).input_ids[0].tolist()
    assert row[: len(ids)] == ids and len(ids) == sum(group.tokens for group in groups)
    assert len(row) % multiple == 0 and len(row) < len(ids) + multiple, "filled up, no further than to the multiple"


def test_an_empty_prompt_or_answer_is_refused() -> None:
    for group in (Group([], [[1]]), Group([1], [[1], []])):
        with pytest.raises(UserError, match="empty prompt or answer"):
            pack([Group([1], [[2]]), group])


@given(st.integers(1, 100_000))
def test_flex_compiles_for_at_most_eight_lengths(row_tokens: int) -> None:
    multiple = row_multiple("flex", row_tokens)
    assert multiple % 128 == 0 and -(-row_tokens // multiple) <= 8


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 300))
@example(tokens=[60] * 3, processes=1, row_tokens=100)  # two rows have room for the tokens, but not for the pairs
def test_every_pair_is_dealt_once_to_no_more_rows_than_it_takes(
    tokens: list[int], processes: int, row_tokens: int
) -> None:
    """Processes have equally many rows. With one less each, some row of several pairs would be too long."""

    def too_long(row: list[int]) -> bool:
        return len(row) > 1 and sum(tokens[i] for i in row) > row_tokens

    dealt = deal(tokens, processes, row_tokens)
    rows, (count,) = list(chain.from_iterable(dealt)), {len(rows) for rows in dealt}
    assert len(dealt) == processes and sorted(chain.from_iterable(rows)) == list(range(len(tokens)))
    assert not any(map(too_long, rows))
    assert count == 1 or any(map(too_long, _spread(tokens, processes * (count - 1))))


@pytest.mark.parametrize(("count", "processes"), [(11, 1), (11, 2), (3, 4), (1, 8)])
def test_all_processes_together_count_every_pair_once(count: int, processes: int) -> None:
    """A pair is known by its numbers, its answers by their tokens; fillers count nothing and are the smallest pair."""
    chance, numbers = random.Random(count), ("ref_chosen_logp", "ref_rejected_logp", "chosen_win", "rejected_win")
    numbers += ("chosen_beats_rejected",)
    rows: list[dict[str, Any]] = [
        {f"{part}_token_ids": [chance.randrange(99) for _ in range(chance.randint(1, 30))] for part in parts}
        | {name: chance.random() for name in numbers}
        for parts in [("prompt", "chosen", "rejected")] * count
    ]
    groups = [LENGTHS.group(row) for row in rows]
    steps = [Collator(LENGTHS, 60, rank, processes)(rows) for rank in range(processes)]
    assert len({len(step.batches) for step in steps}) == 1
    pairs = []
    for batch in chain.from_iterable(step.batches for step in steps):
        if not batch.counted.any():
            assert batch.packed.input_ids.shape == (1, min(group.tokens for group in groups))
            continue
        answers = [batch.packed.labels[batch.packed.owners == i].tolist() for i in range(2 * len(batch.counted))]
        values = torch.cat([batch.ref_logp, batch.win, batch.chosen_beats_rejected[:, None]], 1).tolist()
        pairs += zip(values, answers[::2], answers[1::2], strict=True)
    expected = [
        (torch.tensor([row[name] for name in numbers]).tolist(), *group.answers)
        for row, group in zip(rows, groups, strict=True)
    ]
    assert sorted(pairs) == sorted(expected), "answers are cut to the limits"
    assert all(step.tokens == sum(group.tokens for group in groups) for step in steps), "without fillers"
