"""Layout and attention of packed rows against their definitions"""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from padded_twin import GROUPS, by_definition

from src.config import UserError
from src.model import AttentionKind
from src.packed import Group, pack
from src.packed_attention import layout_of, visible

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


def test_positions_of_both_answers_follow_the_prompt() -> None:
    packed = pack([Group([5, 6, 7], [[1, 2, 3], [4, 5]]), Group([8], [[9]])])
    assert packed.input_ids.tolist() == [[5, 6, 7, 1, 2, 4, 8]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0]]
    assert packed.predictors.tolist() == [2, 3, 4, 2, 5, 6]
    assert packed.labels.tolist() == [1, 2, 3, 4, 5, 9]
    assert packed.owners.tolist() == [0, 0, 0, 1, 1, 2]


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


def test_the_masks_of_a_pass_are_built_once() -> None:
    layout = layout_of(pack([Group([1, 2, 3], [[4, 5], [6, 7, 8]])]), "segments")
    heads = torch.randn(1, 2, 6, 8)
    for _ in range(3):
        layout.attend(heads, heads, heads, 1.0, None, None)
    assert len(layout.masks) == 1  # type: ignore[attr-defined]
