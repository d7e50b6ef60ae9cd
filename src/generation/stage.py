"""Generate: the policy answers each prompt K times.

In: prompts, policy. Out: RESPONSES rows, K answers each, in the order of the prompts.
A finished batch is a file in `work/`; a killed run loses at most the batch in flight.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, PositiveFloat, PositiveInt

from src import records
from src.artifact import WORK, write_atomic
from src.config import UserError, config
from src.progress import bar


class Answer(NamedTuple):
    """One sampled answer: ids as sampled, EOS included exactly where it was sampled."""

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]


@config
class Sampling:
    """What is sampled."""

    K: PositiveInt
    """Answers per prompt."""
    temperature: PositiveFloat
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: PositiveInt
    max_prompt_tokens: PositiveInt
    """A longer prompt is left out of the run, and counted."""


@runtime_checkable
class Engine(Protocol):
    """How answers are sampled; one row of `prompts` and `seeds` an answer."""

    batch_answers: int

    def open(self, policy: Path, sampling: Sampling) -> Sampler: ...


@runtime_checkable
class Sampler(Protocol):
    def render(self, messages: list[dict[str, str]]) -> list[int]: ...

    def answer(self, prompts: list[list[int]], seeds: list[int]) -> list[Answer]: ...


class Cell(NamedTuple):
    """One answer to make."""

    row: int
    k: int
    prompt: list[int]
    seed: int


CELLS = pa.schema({"row": pa.int32(), "k": pa.int32(), "answer": records.ANSWER})


@config
class Generate:
    """Sample K answers per prompt; answer k depends only on (seed, prompt, k), so K=5 is the start of K=8."""

    kind: ClassVar[str] = "responses"
    version: ClassVar[int] = 2
    resumable: ClassVar[bool] = True

    sampling: Sampling
    engine: Engine
    seed: int

    def __call__(self, *inputs: Path, out: Path) -> None:
        prompts, policy = inputs
        rows = records.read_rows(prompts, records.PROMPTS)
        sampler = self.engine.open(policy, self.sampling)
        ids = [sampler.render(row["messages"]) for row in rows]
        kept = [i for i, prompt in enumerate(ids) if len(prompt) <= self.sampling.max_prompt_tokens]
        if not kept:
            raise UserError(f"sampling.max_prompt_tokens: no prompt has {self.sampling.max_prompt_tokens} or fewer")
        if len(kept) < len(rows):
            print(f"generate: {len(rows) - len(kept)} of {len(rows)} prompts are over max_prompt_tokens; left out")
        cells = [self._cell(i, k, rows[i]["prompt_id"], ids[i]) for k in range(self.sampling.K) for i in kept]
        answers = self._answer_all(cells, sampler, out / WORK)
        full = (
            rows[i] | {"prompt_token_ids": ids[i], "responses": [answers[i, k] for k in range(self.sampling.K)]}
            for i in kept
        )
        records.write_rows(out, full, records.RESPONSES)

    def _cell(self, row: int, k: int, prompt_id: str, prompt: list[int]) -> Cell:
        return Cell(row, k, prompt, cell_seed(self.seed, prompt_id, k))

    def _answer_all(self, cells: list[Cell], sampler: Sampler, work: Path) -> dict[tuple[int, int], records.Row]:
        work.mkdir(parents=True, exist_ok=True)
        answers = {(row["row"], row["k"]): row["answer"] for row in _finished(work)}
        with bar("generate", len(cells), len(answers), "answer") as progress:
            for batch in batches(cells, self.engine.batch_answers):
                missing = [cell for cell in batch if (cell.row, cell.k) not in answers]
                if not missing:
                    continue
                made = sampler.answer([c.prompt for c in missing], [c.seed for c in missing])
                new = {(c.row, c.k): _row(c, a) for c, a in zip(missing, made, strict=True)}
                _append(work, missing, new)
                answers |= new
                progress.update(len(missing))
        return answers


def cell_seed(seed: int, prompt_id: str, k: int) -> int:
    """63-bit seed of answer k to a prompt."""
    digest = hashlib.sha256(f"{seed}/{prompt_id}/{k}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def batches(cells: list[Cell], size: int) -> Iterator[list[Cell]]:
    """Batches of one k each, prompts of similar length together.

    A batch never mixes two k: batch composition, and with it every rounding error, is the same for K=5 and K=8.
    """
    ordered = sorted(cells, key=lambda c: (c.k, len(c.prompt), c.row))
    start = 0
    while start < len(ordered):
        stop = start
        while stop < len(ordered) and stop - start < size and ordered[stop].k == ordered[start].k:
            stop += 1
        yield ordered[start:stop]
        start = stop


def _row(cell: Cell, answer: Answer) -> records.Row:
    return answer._asdict() | {"seed": cell.seed, "source": "policy"}


def _append(work: Path, cells: list[Cell], answers: dict[tuple[int, int], records.Row]) -> None:
    """One file a batch, on disk and whole, or not there."""
    rows = [{"row": c.row, "k": c.k, "answer": answers[c.row, c.k]} for c in cells]
    table = io.BytesIO()
    records.write_table(table, rows, CELLS)
    write_atomic(work / f"{cells[0].k:03d}-{cells[0].row:08d}.parquet", table.getvalue())


def _finished(work: Path) -> Iterator[records.Row]:
    for path in sorted(work.glob("*.parquet")):
        yield from pq.read_table(path).to_pylist()
