"""Completions of an endpoint: many requests in flight, each handed on as soon as it is there."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from threading import Semaphore, Thread
from typing import Any, Literal, NamedTuple, TypeVar

from src.kernel.config import UserError
from src.modeling.endpoint import Client, Endpoint, Refused

J = TypeVar("J")
R = TypeVar("R")
LimitName = Literal["max_tokens", "max_completion_tokens"]
"""What the server calls the most tokens of an answer; OpenAI's models that think know the second name only."""


STOP_S = 0.5
"""Between two looks whether to stop."""


class Completion(NamedTuple):
    text: str
    token_ids: list[int] | None
    """As sampled, where the server tells."""
    finish_reason: str
    input_tokens: int
    """As billed; 0 where the server does not say."""
    output_tokens: int


def read_completion(found: Any) -> Completion:
    """Of a chat or a text. Raises ValueError for what is none: the openai client believes every JSON."""
    try:
        choice, usage = found.choices[0], found.usage
        text = choice.message.content if hasattr(choice, "message") else choice.text
        ids = getattr(choice, "token_ids", None)
        return Completion(
            (text or "").encode("utf-8", "replace").decode(),  # JSON can spell half of a character, a file cannot
            None if ids is None else [_token_id(token) for token in ids],
            str(choice.finish_reason or "nothing"),
            billed(usage, "prompt_tokens"),
            billed(usage, "completion_tokens"),
        )
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"not a completion: {error}") from error


def billed(usage: Any, name: str) -> int:
    """A number of tokens; 0 where the server says none."""
    told = getattr(usage, name, None)
    return told if isinstance(told, int) and 0 <= told < 2**63 else 0


def _token_id(told: Any) -> int:
    if not isinstance(told, int) or not 0 <= told < 2**31:
        raise ValueError(f"not a token id: {told!r}")
    return told


def fields(
    endpoint: Endpoint, limit: tuple[LimitName, int | None], temperature: float | None, top_p: float | None
) -> dict[str, Any]:
    """Of every request; null is not sent."""
    named = {limit[0]: limit[1], "temperature": temperature, "top_p": top_p}
    given = {name: value for name, value in named.items() if value is not None}
    return {"model": endpoint.model, "extra_body": endpoint.extra_body} | given


def in_flight(client: Client, jobs: Sequence[J], ask: Callable[[J], R]) -> Iterator[tuple[J, R | Refused]]:
    """Each job and what `ask` gave, as it comes; `endpoint.concurrent` threads ask.

    After an error that concerns every job it gives what was in flight, for that is paid for, and raises it. A signal
    ends it at once, with what had come.
    """
    waiting, done = deque(jobs), SimpleQueue[tuple[J, R | Exception]]()
    room = Semaphore(client.endpoint.concurrent)  # asked, and not yet taken by who keeps the answers

    def work() -> None:
        while not client.stop.is_set():
            if not room.acquire(timeout=STOP_S):
                continue
            try:
                job = waiting.popleft()
            except IndexError:
                return
            try:
                done.put((job, ask(job)))
            except Refused as refused:
                done.put((job, refused))
            except Exception as error:
                client.stop.set()
                done.put((job, error))

    threads = [Thread(target=work, daemon=True) for _ in range(min(client.endpoint.concurrent, len(jobs)))]
    for thread in threads:
        thread.start()
    failure: Exception | None = None
    try:
        for _ in jobs:
            job, found = done.get()
            if isinstance(found, Exception) and not isinstance(found, Refused):
                failure = found
                break
            yield job, found
            room.release()
    except GeneratorExit:
        raise
    except BaseException:
        yield from _came(done)
        raise
    finally:
        client.stop.set()
    if failure:
        print("waiting for the answers that are under way: they are paid for", flush=True)
        _await(threads, client.endpoint.timeout_s)
        yield from _came(done)
        raise failure


def _await(threads: list[Thread], timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _came(done: SimpleQueue[tuple[J, R | Exception]]) -> Iterator[tuple[J, R]]:
    while True:
        try:
            job, found = done.get_nowait()
        except Empty:
            return
        if not isinstance(found, Exception):
            yield job, found


class Bill:
    """What was asked of an endpoint, for the line at the end."""

    def __init__(self, client: Client, title: str) -> None:
        self._client, self._title = client, title
        self._start = time.monotonic()
        self._answers = self._input = self._output = 0

    def add(self, completion: Completion) -> None:
        self._answers += 1
        self._input += completion.input_tokens
        self._output += completion.output_tokens

    def say(self) -> None:
        endpoint = self._client.endpoint
        cost = endpoint.cost(self._input, self._output)
        counts = f"{self._answers} answers, {self._client.retries} retries"
        tokens = f"{self._input:,} input and {self._output:,} output tokens"
        paid = "" if cost is None else f", cost {cost:.4g}"
        seconds = time.monotonic() - self._start
        print(
            f"{self._title}: {endpoint.model} at {endpoint.host}: {counts}, {tokens}{paid}, {seconds:.1f} s", flush=True
        )


def served_models(client: Client) -> dict[str, str]:
    """What the server calls each model -> what it was loaded from, where the server says; else the name again."""

    def read(openai: Any) -> dict[str, str]:
        from openai import NotFoundError

        try:
            return {model.id: str(getattr(model, "root", None) or model.id) for model in openai.models.list().data}
        except NotFoundError:
            raise Refused("404") from None
        except (AttributeError, TypeError) as error:
            raise ValueError(f"not a list of models: {error}") from error

    try:
        return client.ask(read)
    except Refused as refused:
        key, host = client.key, client.endpoint.host
        raise UserError(
            f"{key}.base_url: {host} does not list its models ({refused}), so nothing says that it serves the policy; "
            f"does the address end in /v1? Else start it with the policy's folder, and give that as {key}.model"
        ) from None
