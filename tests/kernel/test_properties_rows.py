"""Laws of what a model is given: chats of any length in token ids, and rows packed from pairs."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import pytest
import torch
from conftest import inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encoding import texts, tokenizer
from test_packed import GROUPS, by_definition

from src.generation.encoding import answer_ids
from src.model import AttentionKind, Messages, render
from src.packed import Group, pack
from src.packed_attention import layout_of
from src.training.batch import Collator, group_of
from src.training.lengths import Lengths

KINDS = pytest.mark.parametrize("kind", ["chatml", "inst", "gemma", "phi"])
SAID = texts.filter(str.strip)


@st.composite
def chats(draw: Any) -> Messages:
    """User and assistant by turns; the last word is the user's."""
    count = draw(st.integers(0, 2)) * 2 + 1
    return [{"role": ("user", "assistant")[turn % 2], "content": draw(SAID)} for turn in range(count)]


# Chats -------------------------------------------------------------------------------------------------------------


@KINDS
@given(chat=chats(), text=SAID)
def test_prompt_and_answer_begin_the_whole_chat_however_many_turns_it_has(kind: str, chat: Messages, text: str) -> None:
    own, stops = tokenizer(kind)
    whole = render(own, [*chat, {"role": "assistant", "content": text}], add_generation_prompt=False)
    prompt, answer = render(own, chat), answer_ids(own, chat, text, stops, finished=True)
    assert whole[: len(prompt) + len(answer)] == prompt + answer


@KINDS
@given(chat=chats(), chosen=SAID, rejected=SAID, most=st.integers(1, 60), room=st.integers(1, 40))
def test_labels_are_the_answers_and_nothing_else_of_a_chat(
    kind: str, chat: Messages, chosen: str, rejected: str, most: int, room: int
) -> None:
    """From text to what is trained on: the first tokens of both answers, each predicted from the token before it."""
    own, stops = tokenizer(kind)
    prompt = render(own, chat)
    answers = [answer_ids(own, chat, text, stops, finished=True) for text in (chosen, rejected)]
    lengths = Lengths(max_prompt=most, max_total=most + room, truncation="separate")
    row = {"prompt_token_ids": prompt, "chosen_token_ids": answers[0], "rejected_token_ids": answers[1]}
    packed = pack([group_of(row, lengths)])
    kept = len(prompt[-most:])
    for side, answer in enumerate(answers):
        labels = packed.labels[packed.owners == side].tolist()
        assert labels == answer[: most + room - kept]
    predictors = packed.input_ids[0, packed.predictors].tolist()
    firsts = [0, min(len(answers[0]), most + room - kept)]
    assert [predictors[place] for place in firsts] == [prompt[-1]] * 2


# Packed rows -------------------------------------------------------------------------------------------------------

ids = st.lists(st.integers(0, 99), min_size=1, max_size=25)
pairs = st.builds(
    lambda *parts: (
        dict(zip(("prompt_token_ids", "chosen_token_ids", "rejected_token_ids"), parts, strict=True))
        | {"ref_chosen_logp": -1.0, "ref_rejected_logp": -2.0, "chosen_win": 0.6, "rejected_win": 0.4}
        | {"chosen_beats_rejected": 0.7}
    ),
    *(ids, ids, ids),
)


@given(st.lists(pairs, min_size=1, max_size=12), st.integers(1, 120), st.integers(1, 4), st.sampled_from([1, 16]))
def test_every_pair_is_in_one_row_that_is_no_longer_than_it_may_be_and_whose_positions_start_anew(
    rows: list[dict[str, Any]], row_tokens: int, processes: int, multiple: int
) -> None:
    lengths = Lengths(max_prompt=16, max_total=40, truncation="separate")
    steps = [Collator(lengths, row_tokens, rank, processes, multiple=multiple)(rows) for rank in range(processes)]
    assert len({len(step.batches) for step in steps}) == 1
    found = []
    for batch in chain.from_iterable(step.batches for step in steps):
        held = [prompt + sum(answers) for prompt, answers in batch.packed.spans]
        assert len(held) == 1 or sum(held) <= row_tokens
        position, place = batch.packed.position_ids[0].tolist(), 0
        for number, (prompt, answers) in enumerate(batch.packed.spans):
            starts = [0, *(prompt for _ in answers)]
            for start, count in zip(starts, (prompt, *answers), strict=True):
                assert position[place : place + count] == list(range(start, start + count))
                place += count
            own = [batch.packed.labels[batch.packed.owners == 2 * number + side].tolist() for side in (0, 1)]
            if batch.counted[number]:
                found.append(own)
    expected = [
        list(lengths.fit(*(row[f"{part}_token_ids"] for part in ("prompt", "chosen", "rejected")))[1:]) for row in rows
    ]
    assert sorted(found) == sorted(expected)


rows_and_windows = given(
    GROUPS, st.none() | st.integers(1, 20), st.none() | st.just(5.0), st.sampled_from([1, 2]), st.integers(0, 2**31)
)


@rows_and_windows
def test_attention_is_that_of_the_slow_twins_mask(
    groups: list[Group], window: int | None, softcap: float | None, kv_heads: int, seed: int
) -> None:
    check_attention("segments", groups, window, softcap, kv_heads, seed)


@pytest.mark.full
@settings(max_examples=inputs(10, 100))  # a second each
@rows_and_windows
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_that_of_the_slow_twins_mask(
    groups: list[Group], window: int | None, softcap: float | None, kv_heads: int, seed: int
) -> None:
    check_attention("flex", groups, window, softcap, kv_heads, seed)


def check_attention(
    kind: AttentionKind, groups: list[Group], window: int | None, softcap: float | None, kv_heads: int, seed: int
) -> None:
    """Two query heads of four channels, against the softmax over the whole masked row."""
    chance = torch.Generator().manual_seed(seed)
    packed = pack(groups)
    length = packed.input_ids.shape[1]
    query = torch.randn(1, 2, length, 4, generator=chance)
    key, value = (torch.randn(1, kv_heads, length, 4, generator=chance) for _ in range(2))
    found = layout_of(packed, kind).attend(query, key, value, 0.5, window, softcap)
    shared = [states.repeat_interleave(2 // kv_heads, 1) for states in (key, value)]
    scores = query @ shared[0].mT * 0.5
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    mask = by_definition(groups, length, window)
    expected = scores.masked_fill(~mask, -math.inf).softmax(-1) @ shared[1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
