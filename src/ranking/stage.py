"""Rank: a preference model compares the K answers of each prompt.

In: responses, then the folders of the ranker's own models. Out: RANKING rows, in the order of the responses, and
`metrics.json`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from src.kernel.artifact import WORK, Sharing, Stage
from src.kernel.config import Free, UserError, config, fingerprint, naming
from src.kernel.progress import bar
from src.kernel.rows import (
    NOT_FINITE,
    RANKING,
    RESPONSES,
    Journal,
    Row,
    kept_aside,
    read_rows,
    write_metrics,
    write_rows,
)
from src.ranking.diagnostics import diagnose

RANKER = "ranker"


@runtime_checkable
class Ranker(Protocol):
    """A preference model."""

    name: str
    scalar: ClassVar[bool]
    """True: gives `scores`, comparable between answers ranked apart. False: gives K x K `logits`."""

    @property
    def models(self) -> tuple[Stage, ...]:
        """Stages that bring the checkpoints it needs."""
        ...

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        """RANKING fields (without `prompt_id`) of RESPONSES rows, in their order; K may differ between prompts.

        `work` keeps progress, so that a killed process loses little: `work/cells` is shared with every
        artifact of an equal ranker, the rest is this artifact's own. The result must not depend on either.
        """
        ...


@config
class Rank:
    kind: ClassVar[str] = "ranking"
    version: ClassVar[int] = 3
    resumable: ClassVar[bool] = True

    ranker: Ranker
    key: Free[str] = RANKER
    """Of the ranker in the config, for messages."""

    def shared(self) -> Any:
        """A ranker may know better than its whole config what its cells depend on."""
        return self.ranker.shared() if isinstance(self.ranker, Sharing) else fingerprint(self.ranker)

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows = read_rows(inputs[0], RESPONSES)
        (out / WORK).mkdir(exist_ok=True)
        with self.naming(), kept_aside(rows, RESPONSES, out / WORK):
            ranked = self.ranker.rank(rows, inputs[1:], out / WORK)
            ranking = [
                _checked(row, found) | {"prompt_id": row["prompt_id"]} for row, found in zip(rows, ranked, strict=True)
            ]
        write_rows(out, ranking, RANKING)
        write_metrics(out, diagnose(rows, ranking))

    def naming(self) -> AbstractContextManager[None]:
        """Rankers know themselves as `ranker`."""
        return naming(RANKER, self.key)


def in_batches(rank: Callable[[list[Row]], list[Row]], rows: list[Row], prompts: int, work: Path) -> list[Row]:
    """`rank` of `prompts` rows at a time, each batch saved when it is done."""
    done = Journal(work)
    with bar("rank", len(rows), len(done.rows), "prompt") as progress:
        for start in range(0, len(rows), prompts):
            todo = [i for i in range(start, min(start + prompts, len(rows))) if i not in done.rows]
            if todo:
                ranked = rank([rows[i] for i in todo])
                done.add((i, _checked(rows[i], row)) for i, row in zip(todo, ranked, strict=True))
                progress.update(len(todo))
    return [done.rows[i] for i in range(len(rows))]


def _checked(row: Row, ranked: Row) -> Row:
    """Refuse scores that are not finite before anything is trained on them."""
    if ranked["scores"]:
        values = {f"answer {i}": score for i, score in enumerate(ranked["scores"], 1)}
    else:
        lines = enumerate(ranked["logits"], 1)
        values = {f"answers {i} and {j}": c for i, line in lines for j, c in enumerate(line, 1) if i != j}
    for place, value in values.items():
        if value is None or not abs(value) < float("inf"):
            raise UserError(
                f"ranker: it gave {NOT_FINITE} for prompt {row['prompt_id']}, {place}; look at that text, or let it "
                "compute in float32"
            )
    return ranked
