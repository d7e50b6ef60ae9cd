"""Rank: a preference model compares the K answers of each prompt.

In: responses, then the folders of the ranker's own models. Out: RANKING rows, in the order of the responses.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from src import records
from src.artifact import WORK, Stage
from src.config import UserError, config
from src.progress import bar


@runtime_checkable
class Judge(Protocol):
    """A ranker with its models loaded."""

    def rank(self, rows: list[records.Row]) -> list[records.Row]:
        """RANKING fields (without `prompt_id`) of RESPONSES rows; must not depend on what else is in `rows`."""
        ...


@runtime_checkable
class Ranker(Protocol):
    """A preference model: config that opens into a Judge."""

    name: str
    scalar: ClassVar[bool]
    """True: gives `scores`, comparable between answers ranked apart. False: gives K x K `logits`."""
    batch_prompts: int

    @property
    def models(self) -> tuple[Stage, ...]:
        """Stages that bring the checkpoints it needs."""
        ...

    def open(self, models: tuple[Path, ...]) -> Judge: ...


@config
class Rank:
    kind: ClassVar[str] = "ranking"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    ranker: Ranker

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows = records.read_rows(inputs[0], records.RESPONSES)
        judge = self.ranker.open(inputs[1:])
        done = records.Journal(out / WORK)
        with bar("rank", len(rows), len(done.rows), "prompt") as progress:
            for start in range(0, len(rows), self.ranker.batch_prompts):
                todo = [
                    i for i in range(start, min(start + self.ranker.batch_prompts, len(rows))) if i not in done.rows
                ]
                if todo:
                    ranked = judge.rank([rows[i] for i in todo])
                    done.add((i, _checked(rows[i], row)) for i, row in zip(todo, ranked, strict=True))
                    progress.update(len(todo))
        records.write_rows(
            out,
            (done.rows[i] | {"prompt_id": row["prompt_id"]} for i, row in enumerate(rows)),
            records.RANKING,
        )


def _checked(row: records.Row, ranked: records.Row) -> records.Row:
    """Refuse scores that are not finite before anything is trained on them."""
    values = ranked["scores"] or [c for i, line in enumerate(ranked["logits"]) for j, c in enumerate(line) if i != j]
    if any(v is None or not abs(v) < float("inf") for v in values):
        raise UserError(f"ranker: it gave NaN or infinity for prompt {row['prompt_id']}")
    return ranked
