"""Verdicts of a judge on questions: each is asked for once, by many threads, and kept as soon as it is there."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple, Protocol

from src.cells import CELLS, Cells, cell_key
from src.config import UserError
from src.progress import bar
from src.ranking.endpoint import Client, Endpoint, Refused, Reply

CHARACTERS_A_TOKEN = 4
"""Of English text; a rough estimate, said before anything is spent."""
SHOWN = 3
"""Malformed verdicts that are shown."""
SHORT = 160
"""Characters of a reply that are kept and shown."""


class Question(NamedTuple):
    """What a verdict is asked on; equal ones are one request."""

    prompt: str
    answers: tuple[str, ...]
    """In the order shown."""

    @property
    def key(self) -> str:
        return cell_key(self.prompt, *self.answers)


class Verdict(NamedTuple):
    verdict: str
    """The reply, shortened."""
    value: float | None
    """None: malformed."""
    input_tokens: int
    output_tokens: int


class Judge(Protocol):
    """What is asked of whom, and how the reply is read."""

    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def top_logprobs(self) -> int: ...
    @property
    def malformed_share_limit(self) -> float: ...
    def text(self, question: Question) -> str: ...
    def value(self, reply: Reply) -> float | None:
        """None for a reply that says no verdict."""
        ...


def collect(judge: Judge, questions: Iterable[Question], work: Path) -> dict[str, Verdict]:
    """The verdict on every question by its key; those in the cells of `work` are not asked for again.

    Raises UserError when the endpoint fails for good or too many verdicts are malformed; what is there is kept.
    """
    unique = {question.key: question for question in questions}
    cells = Cells(work / CELLS)
    found = {key: Verdict(**cells.values[key]) for key in unique if key in cells.values}
    todo = {key: question for key, question in unique.items() if key not in found}
    _announce(judge, todo, len(found))
    if todo:
        _Session(judge, todo, found, cells).run()
    malformed = [found[key] for key in unique if found[key].value is None]
    _refuse_malformed(judge, malformed, len(unique))
    _show(malformed)
    return found


class _Outcome(NamedTuple):
    key: str
    verdict: Verdict | None
    error: Exception | None
    kept: bool
    """False for a text that the endpoint refused: it may be asked again."""


class _Session:
    """Threads ask, the caller's thread saves. They are daemons: a process that is stopped does not wait for them."""

    def __init__(self, judge: Judge, todo: Mapping[str, Question], found: dict[str, Verdict], cells: Cells) -> None:
        self.judge, self.questions, self.found, self.cells = judge, todo, found, cells
        self.client = Client(judge.endpoint, judge.top_logprobs)
        self.todo: SimpleQueue[str] = SimpleQueue()
        for key in todo:
            self.todo.put(key)
        self.done: SimpleQueue[_Outcome] = SimpleQueue()
        self.taken: list[_Outcome] = []
        self.asked: list[Verdict] = []
        self.malformed = [verdict for verdict in found.values() if verdict.value is None]
        self.start = time.monotonic()
        count = min(judge.endpoint.concurrent, len(todo))
        self.threads = [Thread(target=self._ask, daemon=True) for _ in range(count)]

    def run(self) -> None:
        for thread in self.threads:
            thread.start()
        try:
            self._gather()
        except UserError:
            self._await_those_in_flight()
            raise
        finally:
            self.client.stop.set()
            self._take()
            self._save()
            self.client.close()
            self._say_what_it_cost()

    def _ask(self) -> None:
        while not self.client.stop.is_set():
            try:
                key = self.todo.get_nowait()
            except Empty:
                return
            self.done.put(self._outcome(key))

    def _outcome(self, key: str) -> _Outcome:
        try:
            reply = self.client.ask(self.judge.text(self.questions[key]))
            shown = _short(reply.text) + (" (cut off at max_tokens)" if reply.cut else "")
            verdict = Verdict(shown, self.judge.value(reply), reply.input_tokens, reply.output_tokens)
            return _Outcome(key, verdict, None, True)
        except Refused as refusal:
            return _Outcome(key, Verdict(f"refused: {_short(str(refusal))}", None, 0, 0), None, False)
        except Exception as error:
            return _Outcome(key, None, error, False)

    def _gather(self) -> None:
        known, total = len(self.found), len(self.found) + len(self.questions)
        with bar("judge", total, known, "request") as progress:
            while len(self.found) < total:
                self.taken.append(self.done.get())
                self._take()
                errors = [outcome.error for outcome in self.taken if outcome.error]
                self._save()
                progress.update(len(self.found) - progress.n)
                if errors:
                    raise errors[0]
                _refuse_malformed(self.judge, self.malformed, total)

    def _take(self) -> None:
        """What is there, without waiting."""
        while not self.done.empty():
            self.taken.append(self.done.get())

    def _save(self) -> None:
        """On disk in one write, however many have come since the last."""
        new = {outcome.key: outcome.verdict for outcome in self.taken if outcome.verdict}
        kept = {o.key: o.verdict._asdict() for o in self.taken if o.verdict and o.kept}
        self.taken.clear()
        if kept:
            self.cells.add(kept)
        self.found |= new
        self.asked += new.values()
        self.malformed += [verdict for verdict in new.values() if verdict.value is None]

    def _await_those_in_flight(self) -> None:
        """They are paid for."""
        self.client.stop.set()
        until = time.monotonic() + self.judge.endpoint.timeout_s
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _say_what_it_cost(self) -> None:
        read, said = (sum(tokens) for tokens in zip(*(verdict[2:] for verdict in self.asked), (0, 0), strict=True))
        malformed = sum(verdict.value is None for verdict in self.asked)
        seconds = time.monotonic() - self.start
        counts = f"{len(self.asked)} verdicts, {malformed} of them malformed, {self.client.retries} retries"
        cost = _cost(self.judge, read, said, "")
        print(
            f"{_who(self.judge)}: {counts}, {read:,} input and {said:,} output tokens{cost}, {seconds:.1f} s",
            flush=True,
        )


def _announce(judge: Judge, todo: Mapping[str, Question], known: int) -> None:
    characters = sum(len(judge.text(question)) for question in todo.values())
    tokens = characters // CHARACTERS_A_TOKEN
    longest = judge.endpoint.max_tokens
    cost = _cost(judge, tokens, len(todo) * (longest or 0), "about " if longest else "without replies about ")
    about = f", about {tokens:,} input tokens{cost}" if todo else ""
    print(f"{_who(judge)}: {len(todo)} requests to make, {known} verdicts known{about}", flush=True)


def _cost(judge: Judge, input_tokens: int, output_tokens: int, about: str) -> str:
    cost = judge.endpoint.cost(input_tokens, output_tokens)
    return "" if cost is None else f", cost {about}{cost:.4g}"


def _who(judge: Judge) -> str:
    return f"judge {judge.endpoint.model} at {judge.endpoint.host}"


def _refuse_malformed(judge: Judge, malformed: list[Verdict], total: int) -> None:
    """Raises UserError once the limit is certain to be passed, however well-formed the rest may be."""
    if len(malformed) > judge.malformed_share_limit * total:
        share = f"{len(malformed)} of {total} verdicts of {judge.endpoint.model} are malformed"
        raise UserError(
            f"ranker.malformed_share_limit: {share}, more than {judge.malformed_share_limit:g} of them, such as "
            f"{malformed[0].verdict!r}; mend ranker.instruction, ranker.verdict_pattern or ranker.endpoint, or raise "
            "the limit (all verdicts are kept)"
        )


def _show(malformed: list[Verdict]) -> None:
    for verdict in malformed[:SHOWN]:
        print(f"judge: malformed verdict {verdict.verdict!r}", file=sys.stderr, flush=True)
    if len(malformed) > SHOWN:
        print(f"judge: {len(malformed)} malformed verdicts in all", file=sys.stderr, flush=True)


def _short(text: str) -> str:
    return text if len(text) <= SHORT else f"{text[:SHORT]}…"
