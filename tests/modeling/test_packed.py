"""Packed rows: their layout, their attention, and how pairs are dealt to processes and rows."""

from __future__ import annotations

import random
from itertools import chain, product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from padded_twin import GROUPS, by_definition
from tiny_training import LENGTHS

from src.kernel.config import UserError
from src.modeling.attention import layout_of, visible
from src.modeling.packing import Group, _spread, deal, pack, row_multiple
from src.modeling.policy import AttentionKind
from src.training.batch import Collator, Step

# Layout


@given(GROUPS)
def test_every_answer_token_is_predicted_once_from_the_token_before_it(groups: list[Group]) -> None:
    packed = pack(groups)
    row, position = packed.input_ids[0], packed.position_ids[0]
    found = iter(zip(packed.predictors.tolist(), packed.labels.tolist(), packed.owners.tolist(), strict=True))
    owner = 0
    for prompt, answers in groups:
        for answer in answers:
            for t, token in enumerate(answer):
                at, label, owned = next(found)
                assert (label, owned) == (token, owner)
                assert row[at] == (answer[t - 1] if t else prompt[-1])
                assert position[at] == len(prompt) - 1 + t
            owner += 1
    assert next(found, None) is None


@given(GROUPS)
def test_a_row_holds_each_prompt_once_and_answers_without_their_last_token(groups: list[Group]) -> None:
    packed = pack(groups)
    assert packed.input_ids.shape == (1, sum(group.tokens for group in groups))
    row = packed.input_ids[0].tolist()
    for prompt, answers in groups:
        for part in (prompt, *(answer[:-1] for answer in answers)):
            assert row[: len(part)] == part
            row = row[len(part) :]
    assert not row


@given(GROUPS, st.sampled_from([1, 7, 128]))
def test_a_rounded_row_is_longer_by_less_than_the_multiple_and_predicts_the_same(
    groups: list[Group], multiple: int
) -> None:
    plain, rounded = pack(groups), pack(groups, multiple)
    assert rounded.input_ids.shape[1] % multiple == 0
    assert 0 <= rounded.input_ids.shape[1] - plain.input_ids.shape[1] < multiple
    for name in ("predictors", "labels", "owners"):
        assert torch.equal(getattr(plain, name), getattr(rounded, name))


def test_an_empty_prompt_or_answer_is_refused() -> None:
    for group in (Group([], [[1]]), Group([1], [[1], []])):
        with pytest.raises(UserError, match="empty prompt or answer"):
            pack([Group([1], [[2]]), group])


# Attention


@given(st.integers(1, 20), st.data())
def test_visible_is_causal_and_ends_at_the_window(length: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, length - 1))
    window = data.draw(st.none() | st.integers(1, 25))
    seen = visible(first, length, window)
    for q in range(first, length):
        for k in range(length):
            assert bool(seen[q - first, k]) == (k <= q and (window is None or q - k < window))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", ["segments", "flex"])
def test_attention_is_that_of_the_whole_mask(kind: AttentionKind, eager_flex: None) -> None:
    for kv_heads, window, softcap in ((1, None, 5.0), (2, 1, None), (4, 6, 5.0), (2, 1000, None)):
        check_attention(kind, kv_heads, window, softcap)


def check_attention(kind: AttentionKind, kv_heads: int, window: int | None, softcap: float | None) -> None:
    """Outputs and gradients for queries, keys and values; 4 query heads, groups of one, two and three answers."""
    chance = random.Random(kv_heads)
    lengths = [(4, (6, 9)), (1, (1, 1)), (12, (1, 7)), (3, (5,)), (2, (4, 1, 8))]
    groups = [Group([1] * p, [[chance.randrange(9)] * n for n in answers]) for p, answers in lengths]
    packed = pack(groups, 1 if kind == "segments" else 128)
    length = packed.input_ids.shape[1]
    torch.manual_seed(0)
    heads = [torch.randn(1, n, length, 8, requires_grad=True) for n in (4, kv_heads, kv_heads)]
    twins = [states.detach().clone().requires_grad_() for states in heads]
    got = layout_of(packed, kind).attend(*heads, scaling=0.3, window=window, softcap=softcap)

    query, key, value = twins
    scores = query @ key.repeat_interleave(4 // kv_heads, 1).transpose(2, 3) * 0.3
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~by_definition(groups, length, window), -torch.inf).softmax(-1)
    expected = weights @ value.repeat_interleave(4 // kv_heads, 1)
    torch.testing.assert_close(got, expected)

    seed = torch.randn_like(got)
    (got * seed).sum().backward()
    (expected * seed).sum().backward()
    for states, twin in zip(heads, twins, strict=True):
        torch.testing.assert_close(states.grad, twin.grad)


PAIR_TOKENS = st.lists(st.integers(1, 100), min_size=1, max_size=40)


@given(PAIR_TOKENS, st.integers(1, 9), st.integers(1, 300))
def test_every_pair_is_dealt_once_and_processes_have_equally_many_rows(
    tokens: list[int], processes: int, row_tokens: int
) -> None:
    dealt = deal(tokens, processes, row_tokens)
    assert len(dealt) == processes and len({len(rows) for rows in dealt}) == 1
    assert sorted(chain.from_iterable(chain.from_iterable(dealt))) == list(range(len(tokens)))
    for row in chain.from_iterable(dealt):
        assert len(row) < 2 or sum(tokens[i] for i in row) <= row_tokens


@given(PAIR_TOKENS, st.integers(1, 9), st.integers(1, 300))
def test_there_are_no_more_rows_than_it_takes(tokens: list[int], processes: int, row_tokens: int) -> None:
    """Never more than a pair a row asks for; else one row less a process would leave some row too long."""
    dealt = deal(tokens, processes, row_tokens)
    count = len(dealt[0])
    assert 1 <= count <= -(-len(tokens) // processes)
    if count > 1:
        fewer = _spread(tokens, processes * (count - 1))
        assert any(len(row) > 1 and sum(tokens[i] for i in row) > row_tokens for row in fewer)


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
    said = sorted(
        batch.packed.labels[batch.packed.owners == 2 * number + side].tolist()
        for step in steps
        for batch in step.batches
        for number, side in product(range(len(batch.counted)), (0, 1))
        if batch.counted[number]
    )
    assert said == sorted(answer for row in rows for answer in LENGTHS.group(row).answers), "cut to the limits"
    keys = ("ref_chosen_logp", "ref_rejected_logp", "chosen_win", "chosen_beats_rejected")
    expected = [[row[key] for key in keys] for row in rows]
    torch.testing.assert_close(torch.tensor(sorted(counted)), torch.tensor(sorted(expected)))
    assert len({len(step.batches) for step in steps}) == 1
    smallest = min(LENGTHS.group(row).tokens for row in rows)
    for batch in chain.from_iterable(step.batches for step in steps):
        if not batch.counted.any():
            assert batch.packed.input_ids.shape == (1, smallest)


def test_tokens_are_those_of_the_step_and_not_of_fillers() -> None:
    rows = rows_of(3)
    groups = [LENGTHS.group(row) for row in rows]
    for step in parts(rows, 8):
        assert step.tokens == sum(group.tokens for group in groups)
        assert step.unshared_tokens - step.tokens == sum(len(group.prompt) for group in groups)
        assert step.pairs == rows


@given(st.integers(1, 100_000))
def test_flex_compiles_for_at_most_eight_lengths(row_tokens: int) -> None:
    multiple = row_multiple("flex", row_tokens)
    assert multiple % 128 == 0 and -(-row_tokens // multiple) <= 8
    assert row_multiple("segments", row_tokens) == 1
