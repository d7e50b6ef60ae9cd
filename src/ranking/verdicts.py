"""What is asked of a judge, what is made of its replies, and what is said about them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from statistics import mode
from typing import Any, NamedTuple, Protocol

from pydantic import NonNegativeFloat, PositiveInt

from src.kernel.cells import cell_key
from src.kernel.config import UserError, config
from src.modeling.endpoint import Endpoint
from src.ranking.replies import Reply

SENT_VERSION = 1
"""Raised, and with it the judges' `code_version`, when equal fields send another text or replies are kept otherwise."""
TRIAL = 20
"""Questions given out before one reply can be read; if none of as many can, the ranking ends."""
CHARACTERS_A_TOKEN = 4
"""Of English text; a rough estimate, said before anything is spent."""
SHOWN = 3
"""Malformed verdicts that are shown."""
SHORT = 160
"""Characters of a reply that are shown."""


@config
class JudgeEndpoint(Endpoint):
    """A judge behind HTTP, and how it is to speak."""

    temperature: NonNegativeFloat | None
    """null: not sent, for models that refuse it; so are `seed` and `max_tokens`."""
    seed: int | None
    max_tokens: PositiveInt | None
    """Of a reply."""

    def fields(self) -> dict[str, Any]:
        """Of every request."""
        named = {"temperature": self.temperature, "seed": self.seed, "max_tokens": self.max_tokens}
        given = {name: value for name, value in named.items() if value is not None}
        return {"model": self.model, "extra_body": self.extra_body} | given


class Question(NamedTuple):
    """What a verdict is asked on; equal ones are one request."""

    prompt: str
    answers: tuple[str, ...]
    """In the order shown."""

    @property
    def key(self) -> str:
        return cell_key(self.prompt, *self.answers)


class Verdict(NamedTuple):
    said: str
    """The reply or the server's complaint, shortened."""
    value: float | None
    """None: malformed."""
    input_tokens: int
    output_tokens: int
    refused: bool = False
    """The endpoint did not take the text; it is not kept, another time it may."""


class Judge(Protocol):
    """What is asked of whom, and how the reply is read."""

    @property
    def endpoint(self) -> JudgeEndpoint: ...
    @property
    def instruction(self) -> str: ...
    @property
    def top_logprobs(self) -> int: ...
    @property
    def malformed_share_limit(self) -> float: ...
    def text(self, question: Question) -> str: ...
    def value(self, reply: Reply) -> float | None:
        """None for a reply that says no verdict."""
        ...


def what_is_sent(judge: Judge) -> dict[str, Any]:
    """JSON-able: what a reply depends on besides the question."""
    return {
        "sent_version": SENT_VERSION,
        "fields": judge.endpoint.fields(),
        "instruction": judge.instruction,
        "top_logprobs": judge.top_logprobs,
    }


def of_reply(judge: Judge, reply: Reply) -> Verdict:
    said = _short(reply.text) + (" (cut off at max_tokens)" if reply.cut else "")
    return Verdict(said, judge.value(reply), reply.input_tokens, reply.output_tokens)


def of_refusal(complaint: str) -> Verdict:
    return Verdict(f"refused: {_short(complaint)}", None, 0, 0, refused=True)


def only_malformed(verdicts: Iterable[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if verdict.value is None]


def announce(judge: Judge, todo: Collection[Question], known: int) -> None:
    tokens = sum(len(judge.text(question)) for question in todo) // CHARACTERS_A_TOKEN
    longest = judge.endpoint.max_tokens
    cost = _cost(judge, tokens, len(todo) * (longest or 0), "about " if longest else "without replies about ")
    about = f", about {tokens:,} input tokens{cost}" if todo else ""
    print(f"{_who(judge)}: {len(todo)} requests to make, {known} verdicts known{about}", flush=True)


def sum_up(judge: Judge, asked: list[Verdict], others: int, retries: int, seconds: float) -> None:
    """`others`: verdicts that other processes asked for meanwhile."""
    read, said = sum(verdict.input_tokens for verdict in asked), sum(verdict.output_tokens for verdict in asked)
    counts = f"{len(asked)} verdicts, {len(only_malformed(asked))} of them malformed, {retries} retries"
    cost = f"{read:,} input and {said:,} output tokens{_cost(judge, read, said, '')}"
    shared = f", {others} verdicts from other processes" if others else ""
    print(f"{_who(judge)}: {counts}, {cost}, {seconds:.1f} s{shared}", flush=True)


def _cost(judge: Judge, input_tokens: int, output_tokens: int, about: str) -> str:
    cost = judge.endpoint.cost(input_tokens, output_tokens)
    return "" if cost is None else f", cost {about}{cost:.4g}"


def _who(judge: Judge) -> str:
    return f"judge {judge.endpoint.model} at {judge.endpoint.host}"


def refuse_malformed(judge: Judge, malformed: list[Verdict], found: int, total: int) -> None:
    """Raises UserError once the limit is certain to be passed, or when nothing can be read of a whole trial."""
    limit = judge.malformed_share_limit
    if len(malformed) > limit * total:
        share = f"{len(malformed)} of {total} verdicts of {judge.endpoint.model} are malformed"
        key, what = "malformed_share_limit", f"{share}, more than {limit:g} of them"
    elif limit < 1 and len(malformed) == found >= TRIAL:
        key = "endpoint" if _usual(malformed).refused else "verdict_pattern"
        what = f"none of the first {found} replies of {judge.endpoint.model} is a verdict"
    else:
        return
    raise UserError(f"ranker.{key}: {what}, such as {_usual(malformed).said!r}; {_remedy(_usual(malformed))}")


def _usual(malformed: list[Verdict]) -> Verdict:
    """One of the sort that is more frequent: refused or not to be read."""
    sort = mode(verdict.refused for verdict in malformed)
    return next(verdict for verdict in malformed if verdict.refused == sort)


def _remedy(verdict: Verdict) -> str:
    if verdict.refused:
        return "mend ranker.endpoint as the server says, or shorten ranker.instruction or the answers"
    free = "replies are kept: a mended ranker.verdict_pattern reads them without a request"
    return f"{free}, another ranker.instruction or ranker.endpoint asks anew"


def show_malformed(verdicts: list[Verdict]) -> None:
    malformed = only_malformed(verdicts)
    for verdict in malformed[:SHOWN]:
        print(f"judge: malformed verdict {verdict.said!r}", file=sys.stderr, flush=True)
    if len(malformed) > SHOWN:
        print(f"judge: {len(malformed)} malformed verdicts in all", file=sys.stderr, flush=True)


def _short(text: str) -> str:
    return text if len(text) <= SHORT else f"{text[:SHORT]}…"
