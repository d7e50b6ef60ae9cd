"""Replies of a judge: what is kept of them, so that they can be read again, and how a verdict is read."""

from __future__ import annotations

import math
import re
from itertools import groupby
from typing import Any, NamedTuple

from src.modeling.completions import billed

LEAST = 1e-9
"""Probability of a letter that the server does not list, at least."""
KEPT_CHARACTERS, KEPT_TOKENS = 10_000, 1_000
"""Of a reply, from its end: the last verdict counts."""


class Token(NamedTuple):
    text: str
    alternatives: list[tuple[str, float]]
    """Most likely tokens at its place and their log-probabilities, in nats."""


class Reply(NamedTuple):
    text: str
    tokens: list[Token]
    """Empty where the server gives no log-probabilities."""
    cut: bool
    """It reached max_tokens."""
    input_tokens: int
    """As billed; 0 where the server does not say."""
    output_tokens: int


def read_reply(found: Any) -> Reply:
    """Of a chat completion. Raises ValueError for what is none: the openai client believes every JSON."""
    try:
        choice, usage = found.choices[0], found.usage
        tokens = choice.logprobs.content or [] if choice.logprobs else []
        return Reply(
            _text(choice.message.content or ""),
            [Token(_text(t.token), [alternative(a) for a in t.top_logprobs]) for t in tokens],
            choice.finish_reason == "length",
            billed(usage, "prompt_tokens"),
            billed(usage, "completion_tokens"),
        )
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"not a chat completion: {error}") from error


def alternative(told: Any) -> tuple[str, float]:
    """A token and its log-probability, in nats. Raises ValueError, AttributeError or TypeError for what is none."""
    p = told.logprob
    if not isinstance(p, int | float) or p > 1 or -math.inf < p < -1e308:  # 0 is certain; servers round
        raise ValueError(f"not a log-probability: {p!r}")
    return _text(told.token), float(p)


def _text(told: Any) -> str:
    if not isinstance(told, str):
        raise ValueError(f"not a text: {told!r}")
    return told


def kept(reply: Reply) -> Reply:
    """What any pattern may read of it: the text, and the alternatives of those tokens that might say a verdict."""
    tokens: list[Token] = []
    for tells, group in groupby(reply.tokens[-KEPT_TOKENS:], _lists_a_letter):
        run = list(group)
        tokens += run if tells else [Token("".join(token.text for token in run), [])]
    return reply._replace(text=reply.text[-KEPT_CHARACTERS:], tokens=tokens)


def _lists_a_letter(token: Token) -> bool:
    return any(text.strip() in ("A", "B") for text, _ in token.alternatives)


def from_cell(cell: dict[str, Any]) -> Reply:
    """Of `reply._asdict()`, to JSON and back."""
    return Reply(**cell)._replace(tokens=[Token(*token) for token in cell["tokens"]])


def said(pattern: str, text: str) -> str:
    """The verdict in a reply; empty where there is none."""
    match = _last_match(pattern, text)
    return (match[1] or "") if match else ""


def _last_match(pattern: str, text: str) -> re.Match[str] | None:
    return max(re.finditer(pattern, text), key=lambda match: match.start(), default=None)


def logit_of_verdict(tokens: list[Token], pattern: str) -> float | None:
    """log p(A) - log p(B), nats, at the token that says the verdict; None where it is not told.

    A letter that is not among the alternatives has at most the probability of the least likely of them, and of all
    that they leave: that bound is taken.
    """
    match = _last_match(pattern, "".join(token.text for token in tokens))
    alternatives = _token_at(tokens, match.start(1)).alternatives if match and match[1] else []
    listed = [(text.strip(), math.exp(logp)) for text, logp in alternatives if math.isfinite(logp)]
    chance = {letter: sum(p for text, p in listed if text == letter) for letter in "AB"}
    if not any(chance.values()):
        return None
    left = 1 - sum(p for _, p in listed)
    bound = max(LEAST, min(left, *(p for _, p in listed)))
    return math.log(chance["A"] or bound) - math.log(chance["B"] or bound)


def _token_at(tokens: list[Token], place: int) -> Token:
    for token in tokens:
        if place < len(token.text):
            return token
        place -= len(token.text)
    return tokens[-1]


def check_pattern(pattern: str) -> None:
    """Raises ValueError for a pattern without a group."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"verdict_pattern: no regular expression ({error})") from error
    if not groups:
        raise ValueError("verdict_pattern: needs a group that holds the verdict")
