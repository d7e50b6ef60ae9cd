"""Fills the shared cells with the answers that are missing, in this process or as one of several.

A cell is one answer. Cells are made once, whoever asks for them, and saved now and then: a kill loses seconds.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow.parquet as pq

from src.generation.engine import Answer, Engine, Made, Request, Sampling
from src.kernel.cells import Cells
from src.kernel.config import UserError
from src.kernel.processes import bar
from src.kernel.rows import ROWS

LOOK_S = 1.0
"""Seconds between two looks at what other processes have written."""
SAMPLE_S = 60.0
"""Seconds between two answers that are printed."""
SHOWN = 160
"""Characters printed of one."""


def cell(prompt_id: str, k: int) -> str:
    """Names an answer among the cells."""
    return f"{prompt_id}/{k}"


def compact(answer: Any) -> Any:
    """Keeps token ids in memory at 4 bytes each."""
    return answer | {"token_ids": np.array(answer["token_ids"], np.int32)}


def lacking(requests: list[Request], cells: Cells) -> list[Request]:
    """Returns the requests less the answers that are there."""
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
    """Samples the prompts of worker `number` of `count`: each `count`-th."""
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
    progress: Progress | None,
) -> None:
    """Samples `requests` into `cells`. Answers are saved every `save_s` seconds, and whatever ends the sampling."""
    missing = {(r.prompt_id, k) for r in requests for k in r.seeds}
    unsaved: dict[str, Any] = {}
    saved_at = time.monotonic()
    try:
        for made in engine.open(policy, sampling).answers(requests):
            missing.remove((made.prompt_id, made.k))
            ids, end = made.answer.token_ids, made.answer.finish_reason
            if not ids or end not in ("stop", "length"):
                name = f"prompt {made.prompt_id}, answer {made.k}"
                raise UserError(f"generate: {name}: {len(ids)} tokens, ended by {end!r}; is the engine at fault?")
            unsaved[cell(made.prompt_id, made.k)] = made.answer._asdict()
            if progress:
                progress.add(made)
            if time.monotonic() - saved_at > save_s:
                cells.add(unsaved)
                unsaved, saved_at = {}, time.monotonic()
    finally:
        if unsaved:
            cells.add(unsaved)
    if missing:
        raise RuntimeError(f"generate: the engine gave no answer to {len(missing)} requests, such as {min(missing)}")


class Progress:
    """The progress of a generation: answers and tokens a second, time left, and now and then an answer."""

    def __init__(self, total: int, cells: Cells, requests: list[Request]) -> None:
        self._cells = cells
        self._prompts = {r.prompt_id: r.messages[-1]["content"] for r in requests}
        self._wanted = {cell(r.prompt_id, k) for r in requests for k in r.seeds}
        self._bar = bar("generate", total, total - len(self._wanted), "answer")
        self._tokens = 0
        self._begun = self._printed = time.monotonic()
        self._looked = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._count_others()
        self._bar.close()

    def look(self) -> None:
        """Counts what other processes have added, at most once in LOOK_S."""
        if time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            self._count_others()

    def _count_others(self) -> None:
        for key in self._cells.refresh():
            if key in self._wanted:
                prompt_id, _, k = key.partition("/")
                self.add(Made(prompt_id, int(k), Answer(**self._cells.values[key])))

    def add(self, made: Made) -> None:
        now = time.monotonic()
        self._tokens += len(made.answer.token_ids)
        self._bar.set_postfix_str(f"{self._tokens / (now - self._begun):.0f} tokens/s", refresh=False)
        self._bar.update()
        if now - self._printed > SAMPLE_S:
            self._printed = now
            prompt, answer = (" ".join(t.split())[:SHOWN] for t in (self._prompts[made.prompt_id], made.answer.text))
            self._bar.write(f"generate: {prompt!r} -> {answer!r}")


def refuse_twofold(cells: Cells) -> None:
    """Raises UserError where a cell was made twice and not alike: which one counts would be chance."""
    for key, value, path in cells.again:
        if not np.array_equal(value["token_ids"], cells.values[key]["token_ids"]):
            raise UserError(
                f"generate: {path}: has another answer for {key} than an earlier file; delete it: "
                "what it held beside that is made again"
            )


def check_complete(folder: Path, requests: list[Request]) -> None:
    """Compares the RESPONSES rows on disk with what was asked: each answer once, and no other, known by its seed."""
    table = pq.ParquetFile(folder / ROWS).read(columns=["prompt_id", "responses.list.element.seed"])
    written = Counter((row["prompt_id"], answer["seed"]) for row in table.to_pylist() for answer in row["responses"])
    asked = Counter((r.prompt_id, seed) for r in requests for seed in r.seeds.values())
    for wrong, what in ((asked - written, "missing"), (written - asked, "written twice or never asked for")):
        for prompt_id, seed in wrong:
            k = next((k for r in requests if r.prompt_id == prompt_id for k, s in r.seeds.items() if s == seed), "?")
            raise UserError(f"generate: prompt {prompt_id}, answer {k}: {what} ({wrong.total()} such answers)")
