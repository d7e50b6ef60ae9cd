"""Questions for a model behind HTTP: many in flight, each asked once, and every reply on disk as soon as it is there.

A reply is a cell: whoever asks the same of the same model finds it, and no question is paid for twice.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from src.kernel.cells import Cells
from src.kernel.config import UserError
from src.kernel.locks import turn
from src.kernel.processes import bar
from src.modeling.endpoint import Client, Endpoint, Refused

J = TypeVar("J")
R = TypeVar("R")
Q = TypeVar("Q")
Cell = dict[str, Any]
"""A reply as it is kept; `text`, `input_tokens` and `output_tokens` at least."""
LimitName = Literal["max_tokens", "max_completion_tokens"]
"""The server's name for the most tokens of an answer; OpenAI's models that think know the second one only."""
TRIAL = 20
"""Requests made before one reply can be used; if none of as many can, the asking ends."""
CHARACTERS_A_TOKEN = 4
"""Of English text; a rough estimate, printed before anything is spent."""
STOPPED_S = 20.0
"""How long a process that is told to stop waits for the replies under way, which are paid for; SLURM kills after 30."""
SHORT = 160
"""Characters of a useless reply that messages show."""


# Reading a reply ----------------------------------------------------------------------------------------------------


class Completion(NamedTuple):
    text: str
    token_ids: list[int] | None
    """The sampled ids, where the server gives them."""
    finish_reason: str
    input_tokens: int
    """As billed; 0 where the server does not say."""
    output_tokens: int


def read_completion(response: Any) -> Completion:
    """Reads a chat or a text; raises some error for what is none."""
    choice = response.choices[0]
    text = choice.message.content if hasattr(choice, "message") else choice.text
    ids = getattr(choice, "token_ids", None)
    if ids is not None and not all(isinstance(token, int) and 0 <= token < 2**31 for token in ids):
        raise ValueError(f"not token ids: {ids!r:.60}")
    return Completion(
        (text or "").encode("utf-8", "replace").decode(),  # JSON can spell half of a character, a file cannot
        ids,
        str(choice.finish_reason or "nothing"),
        _billed(response.usage, "prompt_tokens"),
        _billed(response.usage, "completion_tokens"),
    )


def _billed(usage: Any, name: str) -> int:
    tokens = getattr(usage, name, None)
    return tokens if isinstance(tokens, int) and 0 <= tokens < 2**63 else 0


class Token(NamedTuple):
    text: str
    alternatives: list[tuple[str, float]]
    """The most likely tokens at its place and their log-probabilities, in nats."""


def read_tokens(response: Any) -> list[Token]:
    """Reads the log-probabilities of a chat, none where the server sends none; raises some error for odd ones."""
    content = getattr(getattr(response.choices[0], "logprobs", None), "content", None) or []
    tokens = [Token(t.token, [(a.token, a.logprob) for a in t.top_logprobs or []]) for t in content]
    for text, p in chain.from_iterable([(token.text, 0.0), *token.alternatives] for token in tokens):
        # 0 is certain, but servers round; what is impossible may be -inf.
        if not isinstance(text, str) or not isinstance(p, int | float) or p > 1 or -math.inf < p < -1e308:
            raise ValueError(f"not a log-probability: {text!r}: {p!r}")
    return tokens


# Asking -------------------------------------------------------------------------------------------------------------


class Replies(NamedTuple):
    cells: dict[str, Cell]
    refused: dict[str, str]
    """What the server said against the questions that it did not take; these are asked again next time."""


@dataclass(frozen=True)
class Asking(Generic[Q]):
    """What is asked of whom, and when it is not worth going on."""

    endpoint: Endpoint
    endpoint_key: str
    """The config key of the endpoint, for messages."""
    title: str
    """The config key of who asks, for messages."""
    request: Callable[[Q], dict[str, Any]]
    """The fields of a question's request."""
    read: Callable[[Any], Cell]
    """Reads a response, and raises some error for what is none."""
    wanted: str
    """What a reply should be, such as `a verdict`."""
    usable: Callable[[Cell], bool] = lambda cell: True
    """Whether a reply is that."""
    kept: Callable[[Cell], bool] = lambda cell: True
    """Whether a reply is worth keeping: another is asked for again next time."""
    limit_key: str = ""
    limit: float = math.nextafter(1, 0)
    """Largest share of replies that are refused or useless; 1: any."""
    remedy: str = "do as the server says"

    def ask(self, questions: Mapping[str, Q], folder: Path) -> Replies:
        """Returns the replies to `questions`, by their keys in the cells of `folder`; one process asks at a time.

        Raises UserError when the endpoint fails for good, or too little of what it says is of use.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with turn(folder / ".lock", self.title, "asking", ends=True):
            store, lock, total = Cells(folder), Lock(), len(questions)
            cells, refused = {key: store.values[key] for key in questions if key in store.values}, dict[str, str]()
            useless = [_example(cell) for cell in cells.values() if not self.usable(cell)]
            missing = [key for key in questions if key not in cells]
            self._announce([questions[key] for key in missing], len(cells))
            self._refuse(useless, len(cells), total)
            if missing:
                client = Client(self.endpoint, self.endpoint_key)

                def ask_one(key: str) -> Cell:
                    fields = self.request(questions[key])
                    cell = client.ask(lambda openai: openai.chat.completions.create(**fields), self.read)
                    if self.kept(cell):
                        with lock:
                            store.add({key: cell})  # in the thread that asked: no signal can come between
                    return cell

                def may_start(flying: int) -> bool:
                    seen = len(cells) + len(refused)
                    self._refuse(useless, seen, total)
                    return self.limit == 1 or len(useless) < seen or seen + flying < TRIAL

                bill = Bill(self.endpoint, self.title)
                flights = in_flight(client, missing, ask_one, may_start, saved=True)
                with closing(client), bill, bar("ask", total, len(cells), "reply") as progress, closing(flights):
                    for key, cell in flights:
                        if isinstance(cell, Refused):
                            refused[key] = str(cell)
                            useless.append(f"refused: {cell}"[:SHORT])
                        else:
                            cells[key] = cell
                            bill.add(cell["input_tokens"], cell["output_tokens"])
                            if not self.usable(cell):
                                useless.append(_example(cell))
                        progress.update()
                self._refuse(useless, total, total)
        if useless:
            line = f"{len(useless)} of {total} replies are not {self.wanted}, such as {useless[0]!r}"
            print(f"{self.title}: {line}", file=sys.stderr, flush=True)
        return Replies(cells, refused)

    def _refuse(self, useless: list[str], seen: int, total: int) -> None:
        """Raises UserError once the limit is certain to be passed, or when nothing of a whole trial is of use."""
        model, count = self.endpoint.model, len(useless)
        if self.limit < 1 and 0 < count == seen >= min(TRIAL, total):
            what = f"none of the first {seen} replies of {model} is {self.wanted}"
        elif count > self.limit * total:
            what = f"{count} of {total} replies of {model} are not {self.wanted}, more than {self.limit:g} of them"
        else:
            return
        raise UserError(f"{self.limit_key or self.title}: {what}, such as {useless[-1]!r}; {self.remedy}")

    def _announce(self, missing: list[Q], known: int) -> None:
        """Prints what there is to ask, and about what it will cost."""
        line = f"{self.title}: {self.endpoint.model} at {self.endpoint.host}: {len(missing):,} requests to make, "
        line += f"{known:,} replies known"
        if missing:
            characters, longest = 0, 0
            for request in map(self.request, missing):
                characters += sum(len(message["content"]) for message in request["messages"])
                longest += request.get("max_tokens") or request.get("max_completion_tokens") or 0
            tokens = characters // CHARACTERS_A_TOKEN
            cost = self.endpoint.cost(tokens, longest)
            most = "at most about" if longest else "without replies about"
            line += f", about {tokens:,} input tokens" + (f", cost {most} {cost:.4g}" if cost is not None else "")
        print(line, flush=True)


def _example(cell: Cell) -> str:
    cut = cell.get("cut") or cell.get("finish_reason") == "length"
    return cell["text"][:SHORT] + (" (cut off at max_tokens)" if cut else "")


def in_flight(
    client: Client,
    jobs: Iterable[J],
    ask: Callable[[J], R],
    may_start: Callable[[int], bool] = lambda flying: True,
    saved: bool = False,
) -> Generator[tuple[J, R | Refused], None, None]:
    """Yields each job and what `ask` returned, as it comes, from at most `endpoint.concurrent` threads.

    `may_start` is asked before each job whether it may join so many in flight. After an error that concerns every job
    the answers in flight are awaited and yielded, for they are paid for, and it is raised; so after a signal, but not
    for long. Where `ask` has `saved` what it returns, they are awaited too when the caller leaves its loop. The threads
    are daemons: a process that ends does not wait for a server that hangs.
    """
    waiting, done, flying = deque(jobs), SimpleQueue[tuple[J, R | Exception]](), 0

    def work(job: J) -> None:
        try:
            done.put((job, ask(job)))
        except Exception as error:
            done.put((job, error))

    try:
        while waiting or flying:
            while waiting and flying < client.endpoint.concurrent and may_start(flying):
                Thread(target=work, args=(waiting.popleft(),), daemon=True).start()
                flying += 1
            job, found = done.get()
            flying -= 1
            if isinstance(found, Exception) and not isinstance(found, Refused):
                raise found
            yield job, found
    except BaseException as error:
        client.stop.set()
        left_alone = isinstance(error, GeneratorExit)  # what the caller's loop raised ends it, such as a signal
        if left_alone and not saved:
            raise
        if flying:
            print("waiting for the answers that are under way: they are paid for", flush=True)
        until = time.monotonic() + (client.endpoint.timeout_s if isinstance(error, Exception) else STOPPED_S)
        while flying and (left := until - time.monotonic()) > 0:
            try:
                job, found = done.get(timeout=left)
            except Empty:
                break
            flying -= 1
            if not isinstance(found, Exception) and not left_alone:
                yield job, found
        raise


class Bill:
    """Counts what is asked of an endpoint, and prints it at the end of a `with`."""

    def __init__(self, endpoint: Endpoint, title: str) -> None:
        self._endpoint, self._title, self._start = endpoint, title, time.monotonic()
        self._answers = self._input = self._output = 0

    def __enter__(self) -> Bill:
        return self

    def add(self, input_tokens: int, output_tokens: int) -> None:
        self._answers += 1
        self._input += input_tokens
        self._output += output_tokens

    def __exit__(self, *_: object) -> None:
        cost = self._endpoint.cost(self._input, self._output)
        line = f"{self._title}: {self._endpoint.model} at {self._endpoint.host}: {self._answers:,} answers, "
        line += f"{self._input:,} input and {self._output:,} output tokens"
        line += "" if cost is None else f", cost {cost:.4g}"
        print(f"{line}, {time.monotonic() - self._start:.1f} s", flush=True)
