"""Fills the shared cells with the answers that are missing, in this process or in several.

A cell is one answer. Cells are made once, whoever asks for them, and saved now and then: a kill loses seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from src.generation.engine import Answer, Engine, Request, Sampling
from src.kernel.cells import Cells
from src.kernel.config import UserError
from src.kernel.disk import turn
from src.kernel.processes import bar, run_in_processes
from src.kernel.store import LOCK

NAME, DOING = "generate", "making answers of this kind"
SAMPLE_S = 60.0
"""Seconds between two answers that are printed."""
SHOWN = 160
"""Characters printed of one."""
_turn = partial(turn, name=NAME, doing=DOING)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the cells in `folder` as the one who wants all of them, so that nothing is made twice.

    Waits for everybody else, shares too; nobody begins meanwhile.
    """
    with _turn(folder / LOCK):
        for share in sorted(folder.glob(f"{LOCK}-*")):
            with _turn(share):
                pass
        yield


@contextmanager
def beside_others(folder: Path, share: str) -> Iterator[None]:
    """Hold a share of the cells in `folder`. Other shares may begin meanwhile.

    Waits for who wants all, and for an earlier start of the same share (a requeued task's old self).
    """
    lock = folder / f"{LOCK}-{share}"
    while True:
        with ExitStack() as held:
            with _turn(folder / LOCK):
                free = held.enter_context(turn(lock, NAME, waits=False))
            if free:
                yield
                return
        with _turn(lock):
            pass


def compact(answer: Any) -> Any:
    """Keep token ids in memory at 4 bytes each."""
    return answer | {"token_ids": np.array(answer["token_ids"], np.int32)}


def lacking(requests: list[Request], cells: Cells) -> list[Request]:
    """Return the requests whose answers are not there."""
    return [request for request in requests if request.cell not in cells.values]


def share_of(requests: list[Request], number: int, count: int) -> list[Request]:
    """Return share `number` of `count`: all requests of each `count`-th prompt."""
    numbers = {prompt_id: n for n, prompt_id in enumerate(dict.fromkeys(r.prompt_id for r in requests))}
    return [request for request in requests if numbers[request.prompt_id] % count == number]


def fill_cells(
    engine: Engine,
    policy: Path,
    sampling: Sampling,
    requests: list[Request],
    folder: Path,
    work: Path,
    workers: int,
    save_s: float,
) -> Cells:
    """Make those answers that are missing in `folder`; return all its cells. `work` is for files of processes."""
    cells = Cells(folder, compact)
    missing = lacking(requests, cells)
    if not missing:
        print(f"{NAME}: all {len(requests)} answers are there")
        return cells
    with closing(_Progress(len(requests), cells, missing)) as progress:
        if not engine.apart and (workers == 1 or not engine.devices_each):
            sample(engine, policy, sampling, missing, cells, save_s, progress)
        else:
            work.mkdir(parents=True, exist_ok=True)
            job = partial(sample_share, engine, policy.resolve(), sampling, missing, folder, save_s)
            run_in_processes(job, NAME, workers, engine.device, engine.devices_each, work, progress.look)
    return cells


def sample_share(
    engine: Engine,
    policy: Path,
    sampling: Sampling,
    requests: list[Request],
    folder: Path,
    save_s: float,
    number: int,
    count: int,
) -> None:
    """Sample the share of worker `number` of `count`."""
    if mine := share_of(requests, number, count):
        sample(engine, policy, sampling, mine, Cells(folder, compact, read=False), save_s, None)


def sample(
    engine: Engine,
    policy: Path,
    sampling: Sampling,
    requests: list[Request],
    cells: Cells,
    save_s: float,
    progress: _Progress | None,
) -> None:
    """Sample `requests` into `cells`. Answers are saved every `save_s` seconds, and whatever ends the sampling."""
    missing = {request.cell for request in requests}
    with cells.saving(save_s) as save:

        def keep(request: Request, answer: Answer) -> None:
            tokens, end = len(answer["token_ids"]), answer["finish_reason"]
            if not tokens or end not in ("stop", "length"):
                raise UserError(
                    f"{NAME}: prompt {request.prompt_id}, answer {request.k}: {tokens} tokens, ended by {end!r}; leave "
                    "the prompt out or raise sampling.max_new_tokens, the rest is kept"
                )
            missing.remove(request.cell)
            save(request.cell, answer)
            if progress:
                progress.add(request, answer)

        engine.open(policy, sampling)(requests, keep)
    if missing:
        raise RuntimeError(f"{NAME}: the engine gave no answer to {len(missing)} requests, such as {min(missing)}")


class _Progress:
    """The progress of a generation: answers and tokens a second, time left, and now and then an answer."""

    def __init__(self, total: int, cells: Cells, missing: list[Request]) -> None:
        self._cells, self._missing = cells, {request.cell: request for request in missing}
        self._bar = bar(NAME, total, total - len(missing), "answer")
        self._tokens = 0
        self._begun = self._printed = time.monotonic()

    def close(self) -> None:
        self._bar.close()

    def look(self) -> None:
        """Count what other processes have added."""
        for name in self._cells.refresh():
            if request := self._missing.get(name):
                self.add(request, self._cells.values[name])

    def add(self, request: Request, answer: Answer) -> None:
        now = time.monotonic()
        self._tokens += len(answer["token_ids"])
        self._bar.set_postfix_str(f"{self._tokens / (now - self._begun):.0f} tokens/s", refresh=False)
        self._bar.update()
        if now - self._printed > SAMPLE_S:
            self._printed = now
            texts = (request.messages[-1]["content"], answer["text"])
            prompt, text = (" ".join(t.split())[:SHOWN] for t in texts)
            self._bar.write(f"{NAME}: {prompt!r} -> {text!r}")
