"""Dealing pairs to processes and rows"""

from __future__ import annotations

import random
from itertools import chain
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import LENGTHS

from src.training.batch import Collator, Step, group_of
from src.training.packing import _spread, deal, row_multiple

TOKENS = st.lists(st.integers(1, 100), min_size=1, max_size=40)


@given(TOKENS, st.integers(1, 9), st.integers(1, 300))
def test_every_pair_is_dealt_once_and_processes_have_equally_many_rows(
    tokens: list[int], processes: int, row_tokens: int
) -> None:
    dealt = deal(tokens, processes, row_tokens)
    assert len(dealt) == processes and len({len(rows) for rows in dealt}) == 1
    assert sorted(chain.from_iterable(chain.from_iterable(dealt))) == list(range(len(tokens)))
    for row in chain.from_iterable(dealt):
        assert len(row) < 2 or sum(tokens[i] for i in row) <= row_tokens


@given(TOKENS, st.integers(1, 9), st.integers(1, 300))
def test_there_are_no_more_rows_than_it_takes(tokens: list[int], processes: int, row_tokens: int) -> None:
    """Never more than a pair a row asks for; else one row less a process would leave some row too long."""
    dealt = deal(tokens, processes, row_tokens)
    count = len(dealt[0])
    assert 1 <= count <= -(-len(tokens) // processes)
    if count > 1:
        fewer = _spread(tokens, processes * (count - 1))
        assert any(len(row) > 1 and sum(tokens[i] for i in row) > row_tokens for row in fewer)


def test_rows_are_filled_evenly() -> None:
    tokens = [500, 400, 300, 300, 200, 100, 100, 100]
    loads = [sum(tokens[i] for i in row) for rows in deal(tokens, 2, 600) for row in rows]
    assert len(loads) == 4 and max(loads) - min(loads) <= 100


# A process's part


def rows_of(count: int, seed: int = 0) -> list[dict[str, Any]]:
    chance = random.Random(seed)

    def ids(most: int) -> list[int]:
        return [chance.randrange(99) for _ in range(chance.randint(1, most))]

    return [
        {"prompt_token_ids": ids(20), "chosen_token_ids": ids(30), "rejected_token_ids": ids(30)}
        | {"ref_chosen_logp": -float(i), "ref_rejected_logp": -i - 0.5, "chosen_win": 0.5 + i / 100}
        | {"rejected_win": 0.5 - i / 100, "chosen_beats_rejected": 0.6 + i / 100}
        for i in range(count)
    ]


def parts(rows: list[dict[str, Any]], processes: int, row_tokens: int = 60) -> list[Step]:
    return [Collator(LENGTHS, row_tokens, rank, processes)(rows) for rank in range(processes)]


def test_all_parts_together_count_every_pair_once() -> None:
    for count, processes in ((11, 1), (11, 2), (3, 4), (1, 8)):
        check_parts(rows_of(count), processes)


def check_parts(rows: list[dict[str, Any]], processes: int) -> None:
    """A pair is known by its reference log-probability; fillers count nothing and are as small as can be."""
    steps = parts(rows, processes)
    counted = [
        [float(ref[0]), float(ref[1]), float(win[0]), float(beats)]
        for step in steps
        for batch in step.batches
        for ref, win, beats, one in zip(*batch[1:], strict=True)
        if one
    ]
    keys = ("ref_chosen_logp", "ref_rejected_logp", "chosen_win", "chosen_beats_rejected")
    expected = [[row[key] for key in keys] for row in rows]
    torch.testing.assert_close(torch.tensor(sorted(counted)), torch.tensor(sorted(expected)))
    assert len({len(step.batches) for step in steps}) == 1
    smallest = min(group_of(row, LENGTHS).tokens for row in rows)
    for batch in chain.from_iterable(step.batches for step in steps):
        if not batch.counted.any():
            assert batch.packed.input_ids.shape == (1, smallest)


def test_tokens_are_those_of_the_step_and_not_of_fillers() -> None:
    rows = rows_of(3)
    groups = [group_of(row, LENGTHS) for row in rows]
    for step in parts(rows, 8):
        assert step.tokens == sum(group.tokens for group in groups)
        assert step.unshared_tokens - step.tokens == sum(len(group.prompt) for group in groups)
        assert step.pairs == rows


@given(st.integers(1, 100_000))
def test_flex_compiles_for_at_most_eight_lengths(row_tokens: int) -> None:
    multiple = row_multiple("flex", row_tokens)
    assert multiple % 128 == 0 and -(-row_tokens // multiple) <= 8
    assert row_multiple("segments", row_tokens) == 1


def test_rows_are_filled_up_to_a_multiple() -> None:
    for batch in Collator(LENGTHS, 60, multiple=16)(rows_of(11)).batches:
        length = batch.packed.input_ids.shape[1]
        held = sum(prompt + sum(answers) for prompt, answers in batch.packed.spans)
        assert length % 16 == 0 and 0 <= length - held < 16
