"""Sampling the answers that are missing into the shared cells, in this process or as one of several."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from src.generation.contract import Engine, Made, Request, Sampling
from src.generation.counter import Counter, cell
from src.kernel.cells import Cells
from src.kernel.config import UserError


def compact(value: Any) -> Any:
    """What is kept in memory of an answer: ids take 4 bytes each."""
    return value | {"token_ids": np.array(value["token_ids"], np.int32)}


def lacking(requests: list[Request], cells: Cells) -> list[Request]:
    """What is asked and not there."""
    rest = [
        r._replace(seeds={k: seed for k, seed in r.seeds.items() if cell(r.prompt_id, k) not in cells.values})
        for r in requests
    ]
    return [r for r in rest if r.seeds]


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
    """The prompts of worker `number` of `count`: each `count`-th."""
    mine = requests[number::count]
    if mine:
        sample(engine, policy, sampling, mine, Cells(folder, compact, read=False), save_s, None)


def sample(
    engine: Engine,
    policy: Path,
    sampling: Sampling,
    requests: list[Request],
    cells: Cells,
    save_s: float,
    counter: Counter | None,
) -> None:
    """Saves now and then, and whatever ends it."""
    asked = {(r.prompt_id, k) for r in requests for k in r.seeds}
    pending: dict[str, Any] = {}
    saved = time.monotonic()
    try:
        for made in engine.open(policy, sampling).answers(requests):
            asked.remove((made.prompt_id, made.k))
            _refuse_faulty(made)
            pending[cell(made.prompt_id, made.k)] = made.answer._asdict()
            if counter:
                counter.add(made)
            if time.monotonic() - saved > save_s:
                cells.add(pending)
                pending, saved = {}, time.monotonic()
    finally:
        if pending:
            cells.add(pending)
    if asked:
        raise RuntimeError(f"generate: the engine gave no answer to {len(asked)} requests, such as {min(asked)}")


def _refuse_faulty(made: Made) -> None:
    """Before it is kept: an answer without a token, or that ended in no way there is."""
    ids, end = made.answer.token_ids, made.answer.finish_reason
    if not ids or end not in ("stop", "length"):
        raise UserError(f"generate: prompt {made.prompt_id}, answer {made.k}: {len(ids)} tokens, ended by {end!r}")
