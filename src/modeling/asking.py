"""Questions for a model behind HTTP: many in flight, each asked once, and every reply on disk as soon as it is there.

A reply is a cell: whoever asks the same of the same model finds it, and no question is paid for twice.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Literal, NamedTuple, TypeVar

from src.kernel.cells import Cells
from src.kernel.config import UserError
from src.kernel.disk import turn
from src.kernel.processes import bar
from src.modeling.endpoint import Client, Endpoint, Refused, billed, without_key

T = TypeVar("T")
Cell = dict[str, Any]
"""A reply as it is kept; `text`, `input_tokens` and `output_tokens` at least."""
LimitName = Literal["max_tokens", "max_completion_tokens"]
"""The server's name for the most tokens of an answer; OpenAI's models that think know the second one only."""
TRIAL = 20
"""Requests made before one reply can be used; if none of as many can, the asking ends."""
CHARACTERS_A_TOKEN = 4
"""A rough estimate for English text, printed before anything is spent."""
STOPPED_S = 20.0
"""Seconds that a stopped process waits for the replies under way, which are paid for; SLURM kills after 30."""
SHORT = 160
"""Characters of a useless reply that messages show."""


# Reading a reply ----------------------------------------------------------------------------------------------------


def read_completion(response: Any) -> Cell:
    """Read a chat or a text completion; raise some error for anything else."""
    choice = response.choices[0]
    text = choice.message.content if hasattr(choice, "message") else choice.text
    if not isinstance(text, str | None):
        raise ValueError(f"its content is a {type(text).__name__}, and no text")
    text = (text or "").encode("utf-8", "replace").decode()  # JSON can spell half of a character, a file cannot
    end = without_key(str(choice.finish_reason or "nothing"))
    return {"text": without_key(text), "finish_reason": end, **billed(response)}


class Token(NamedTuple):
    text: str
    alternatives: list[tuple[str, float]]
    """The most likely tokens at its place and their log-probabilities, in nats."""


def read_tokens(response: Any) -> list[Token]:
    """Read the log-probabilities of a chat, none where the server sends none; raise some error for odd ones."""
    content = getattr(getattr(response.choices[0], "logprobs", None), "content", None) or []
    tokens = [Token(t.token, [(a.token, a.logprob) for a in t.top_logprobs or []]) for t in content]
    for token in tokens:
        for text, logp in [(token.text, 0.0), *token.alternatives]:
            # 0 is certain, but servers round; what is impossible may be -inf.
            if not isinstance(text, str) or not isinstance(logp, int | float) or logp > 1 or -math.inf < logp < -1e308:
                raise ValueError(f"not a log-probability: {text!r}: {logp!r}")
    return tokens


# Asking -------------------------------------------------------------------------------------------------------------


def ask_all(
    questions: Mapping[str, T],
    request: Callable[[T], dict[str, Any]],
    endpoint: Endpoint,
    key: str,
    folder: Path,
    *,
    read: Callable[[Any], Cell] = read_completion,
    description: str = "an answer",
    is_usable: Callable[[Cell], bool] = lambda cell: True,
    is_kept: Callable[[Cell], bool] = lambda cell: True,
    limit_key: str = "",
    limit: float = math.nextafter(1, 0),
    remedy: str = "do as the server says",
) -> dict[str, Cell]:
    """Return the replies to `questions`, by their names in the cells of `folder`; one process asks at a time.

    A question that the server refuses has none, and is asked again next time.

    `request` returns the fields of a question's request, and `read` makes a cell of the response. `is_usable` says
    whether a reply can be used, and `description` names such a reply in messages. More than the share `limit` (1: any)
    of refused or useless replies end the asking. `is_kept` says whether a reply is stored; the question of any other
    is asked again next time. `key` is the config key of the endpoint, for messages. Raises UserError when the endpoint
    fails for good, or too few of its replies can be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with turn(folder / ".lock", key, "asking"):
        store, lock, total = Cells(folder), Lock(), len(questions)
        cells = {name: store.values[name] for name in questions if name in store.values}
        refused: list[str] = []
        useless = [_excerpt(cell) for cell in cells.values() if not is_usable(cell)]
        missing = [name for name in questions if name not in cells]
        _announce(endpoint, key, [questions[name] for name in missing], request, len(cells))

        def check(seen: int) -> None:
            """Raise UserError once the limit is certain to be passed, or when nothing of a whole trial is of use."""
            if limit < 1 and 0 < len(useless) == seen >= min(TRIAL, total):
                what = f"none of the first {seen} replies of {endpoint.model} is {description}"
            elif len(useless) > limit * total:
                share = f"more than {limit:g} of them"
                what = f"{len(useless)} of {total} replies of {endpoint.model} are not {description}, {share}"
            else:
                return
            raise UserError(f"{limit_key or key}: {what}, such as {useless[-1]!r}; {remedy}")

        def may_start(flying: int) -> bool:
            with lock:
                seen = len(cells) + len(refused)
                check(seen)
                return limit == 1 or len(useless) < seen or seen + flying < TRIAL

        def ask(name: str) -> None:
            fields = request(questions[name])
            try:
                cell = client.ask(lambda openai: openai.chat.completions.create(**fields), read)
            except Refused as refusal:
                with lock:
                    refused.append(name)
                    useless.append(f"refused: {refusal}"[:SHORT])
            else:
                with lock:
                    if is_kept(cell):
                        store.add({name: cell})
                    cells[name] = cell
                    if not is_usable(cell):
                        useless.append(_excerpt(cell))
            progress.update()

        if missing:
            with Client(endpoint, key) as client, bar("ask", total, len(cells), "reply") as progress:
                in_flight(client, missing, ask, may_start)
        check(total)
    if useless:
        line = f"{len(useless)} of {total} replies are not {description}, such as {useless[0]!r}"
        print(f"{key}: {line}", file=sys.stderr, flush=True)
    return cells


def in_flight(
    client: Client, jobs: Iterable[T], ask: Callable[[T], None], may_start: Callable[[int], bool] = lambda flying: True
) -> None:
    """Call `ask` with each job, in at most `endpoint.concurrent` threads; `ask` keeps the reply itself.

    `may_start` is asked before each job whether it may join so many in flight. After an error or a signal no job is
    begun, and those in flight are awaited, for they are paid for; after a signal not for long. The threads are
    daemons: a process that ends does not wait for a server that hangs.
    """
    waiting, ended, flying = deque(jobs), SimpleQueue[Exception | None](), 0

    def work(job: T) -> None:
        try:
            ask(job)
            ended.put(None)
        except Exception as error:
            ended.put(error)

    try:
        while waiting or flying:
            while waiting and flying < client.endpoint.concurrent and may_start(flying):
                flying += 1
                Thread(target=work, args=(waiting.popleft(),), daemon=True).start()
            error = ended.get()
            flying -= 1
            if error:
                raise error
    except BaseException as error:
        client.stop.set()
        if flying:
            print("waiting for the answers that are under way: they are paid for", flush=True)
        until = time.monotonic() + (client.endpoint.timeout_s if isinstance(error, Exception) else STOPPED_S)
        with suppress(Empty):
            for _ in range(flying):
                ended.get(timeout=max(0.0, until - time.monotonic()))
        raise


def _announce(
    endpoint: Endpoint, key: str, missing: list[T], request: Callable[[T], dict[str, Any]], known: int
) -> None:
    """Print how much there is to ask, and about what it will cost."""
    line = f"{key}: {endpoint.model} at {endpoint.host}: {len(missing):,} requests to make, {known:,} replies known"
    if missing:
        characters = longest = 0
        for fields in map(request, missing):
            characters += sum(len(message["content"]) for message in fields["messages"])
            longest += fields.get("max_tokens") or fields.get("max_completion_tokens") or 0
        tokens = characters // CHARACTERS_A_TOKEN
        cost = endpoint.cost(tokens, longest)
        most = "at most about" if longest else "without replies about"
        line += f", about {tokens:,} input tokens" + (f", cost {most} {cost:.4g}" if cost is not None else "")
    print(line, flush=True)


def _excerpt(cell: Cell) -> str:
    cut = cell.get("cut") or cell.get("finish_reason") == "length"
    return cell["text"][:SHORT] + (" (cut off at max_tokens)" if cut else "")
