"""Answers that came as text, in the policy's own tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.modeling.model import Messages, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answer_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str, stops: set[int], finished: bool
) -> list[int]:
    """The answer as the template would have it in a chat: after the prompt, up to the stop id that ends its turn.

    That id is left away where the answer was cut off. Special-token text in the answer stays text. Where the template
    renders the prompt otherwise once it is answered, or tokens cross the border, the text is encoded by itself.
    """
    turn = _turn(tokenizer, messages, text, stops)
    if turn is None:
        return text_ids(tokenizer, text) + [turn_end(tokenizer, stops)][:finished]
    return turn if finished else turn[:-1]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Of a text by itself, nothing added; special-token text stays text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def turn_end(tokenizer: PreTrainedTokenizerBase, stops: set[int]) -> int:
    """The stop id with which the template ends an answer, else the tokenizer's EOS where it is one of them."""
    turn = _turn(tokenizer, [{"role": "user", "content": "a"}], "a", stops)
    if turn:
        return turn[-1]
    return tokenizer.eos_token_id if tokenizer.eos_token_id in stops else min(stops)


def _turn(tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str, stops: set[int]) -> list[int] | None:
    """The answer's turn with the id that ends it; None where it cannot be told from the prompt's or has no such id."""
    prompt = render(tokenizer, messages)
    whole = render(tokenizer, [*messages, {"role": "assistant", "content": text}], add_generation_prompt=False)
    if whole[: len(prompt)] != prompt:
        return None
    # An ordinary token may be a stop id too; only the template's own special ones cannot be part of the text.
    ends = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special} & stops
    rest = whole[len(prompt) :]
    end = next((i for i, token in enumerate(rest) if token in ends), None)
    return None if end is None else rest[: end + 1]
