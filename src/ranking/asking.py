"""Questions are put to a judge: each once, by many threads, and the reply is kept as soon as it is there.

A cell holds the reply, not the verdict: who mends the way it is read asks for nothing again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, NamedTuple

from src.kernel.cells import CELLS, Cells
from src.kernel.config import UserError
from src.kernel.progress import bar
from src.modeling.endpoint import Client, Refused
from src.ranking.replies import Reply, from_cell, kept, read_reply
from src.ranking.verdicts import (
    TRIAL,
    Judge,
    Question,
    Verdict,
    announce,
    of_refusal,
    of_reply,
    only_malformed,
    refuse_malformed,
    show_malformed,
    sum_up,
)

REFRESH_S = 1.0
"""Between two looks at what other processes have asked, at least."""


def collect(judge: Judge, questions: Iterable[Question], work: Path) -> dict[str, Verdict]:
    """The verdict on every question by its key; what is in the cells of `work` is not asked for again.

    Raises UserError when the endpoint fails for good or too many verdicts are malformed; what is there is kept.
    """
    unique = {question.key: question for question in questions}
    cells = Cells(work / CELLS)
    found = {key: of_reply(judge, from_cell(cells.values[key])) for key in unique if key in cells.values}
    todo = {key: question for key, question in unique.items() if key not in found}
    announce(judge, todo.values(), len(found))
    refuse_malformed(judge, only_malformed(found.values()), len(found), len(unique))
    if todo:
        _Session(judge, todo, found, cells).run()
    show_malformed([found[key] for key in unique])
    return found


class _Outcome(NamedTuple):
    key: str
    verdict: Verdict | None = None
    cell: dict[str, Any] | None = None
    """To be kept."""
    error: Exception | None = None
    own: bool = True
    """False: another process asked."""


class _Session:
    """Threads ask, the caller's thread saves. They are daemons: a process that is stopped does not wait for them."""

    def __init__(self, judge: Judge, todo: Mapping[str, Question], found: dict[str, Verdict], cells: Cells) -> None:
        self.judge, self.questions, self.found, self.cells = judge, todo, found, cells
        self.malformed = only_malformed(found.values())
        self.client = Client(judge.endpoint, "ranker.endpoint")
        self.waiting = list(todo)
        random.Random().shuffle(self.waiting)  # else processes that start together ask the same at the same time
        self.given: SimpleQueue[str | None] = SimpleQueue()
        self.outcomes: list[_Outcome] = []  # only grows: whenever a signal comes, none is lost
        self.saved = 0
        self.news, self.refreshing = Event(), Lock()
        self.start = self.refreshed = time.monotonic()
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
            self._stop()
            self._save()
            self.client.close()
            self._sum_up()

    def _ask(self) -> None:
        while (key := self.given.get()) is not None and not self.client.stop.is_set():
            self.outcomes.append(self._outcome(key))
            self.news.set()

    def _outcome(self, key: str) -> _Outcome:
        try:
            text = self.judge.text(self.questions[key])
            asked = self.client.ask_unless(lambda openai: self._reply(openai, text), lambda: self._known(key))
            if not asked:
                return _Outcome(key, of_reply(self.judge, from_cell(self.cells.values[key])), own=False)
            reply = kept(asked[0])
            return _Outcome(key, of_reply(self.judge, reply), reply._asdict())
        except Refused as refusal:
            return _Outcome(key, of_refusal(str(refusal)))
        except Exception as error:
            return _Outcome(key, error=error)

    def _reply(self, openai: Any, text: str) -> Reply:
        top = self.judge.top_logprobs
        more = {"logprobs": True, "top_logprobs": top} if top else {}
        messages = [{"role": "user", "content": text}]
        found = openai.chat.completions.create(messages=messages, **self.judge.endpoint.fields(), **more)
        return read_reply(self.client.heard(found))

    def _known(self, key: str) -> bool:
        """Whether another process has the reply by now."""
        with self.refreshing:
            if time.monotonic() - self.refreshed >= REFRESH_S:
                self.cells.refresh()
                self.refreshed = time.monotonic()
        return key in self.cells.values

    def _gather(self) -> None:
        known, total = len(self.found), len(self.found) + len(self.questions)
        self._give_out(TRIAL)
        with bar("judge", total, known, "request") as progress:
            while len(self.found) < total:
                if self.judge.malformed_share_limit == 1 or len(self.found) > len(self.malformed):
                    self._give_out(total)
                self.news.wait()
                self.news.clear()
                errors = [outcome.error for outcome in self._save() if outcome.error]
                progress.update(len(self.found) - progress.n)
                if errors:
                    raise errors[0]
                refuse_malformed(self.judge, self.malformed, len(self.found), total)

    def _give_out(self, count: int) -> None:
        for key in self.waiting[:count]:
            self.given.put(key)
        del self.waiting[:count]

    def _save(self) -> list[_Outcome]:
        """What is new, on disk in one write, however many have come since the last."""
        new = self.outcomes[self.saved :]
        cells = {outcome.key: outcome.cell for outcome in new if outcome.cell}
        if cells:
            self.cells.add(cells)
        verdicts = {outcome.key: outcome.verdict for outcome in new if outcome.verdict}
        self.found |= verdicts
        self.malformed += only_malformed(verdicts.values())
        self.saved += len(new)
        return new

    def _await_those_in_flight(self) -> None:
        """They are paid for."""
        self._stop()
        until = time.monotonic() + self.judge.endpoint.timeout_s
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _stop(self) -> None:
        self.client.stop.set()
        for _ in self.threads:
            self.given.put(None)

    def _sum_up(self) -> None:
        done = self.outcomes[: self.saved]
        own = [outcome.verdict for outcome in done if outcome.verdict and outcome.own]
        others = sum(not outcome.own for outcome in done)
        sum_up(self.judge, own, others, self.client.retries, time.monotonic() - self.start)
