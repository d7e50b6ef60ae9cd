"""The stage that writes the prompts of an iteration, or those held out.

Out: PROMPTS rows, and `metrics.json` with what was left out: rows_read from the source, doubled there; of this part
leaked (held out), asked_before (in an earlier part), rows_left after that, and rows, which are asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import ClassVar, NamedTuple

from pydantic import NonNegativeInt, PositiveInt

from src.data.reading import Source, read_columns
from src.data.rows import Columns, same_text
from src.kernel.config import Share, UserError, config
from src.kernel.rows import PROMPTS, Row, write_metrics, write_rows


@config
class Lots:
    """From share `start` to `stop` of the prompts in the order of their lots.

    A lot depends on the seed and on what the prompt says, not on its place: shuffled rows make the same parts.
    """

    seed: NonNegativeInt
    start: Share
    stop: Share


@config
class Portion:
    """Distinct prompts of a source: all in their order, or those between two lots."""

    source: Source
    columns: Columns
    content: str
    """Of the source when the run was planned: the key follows what it says, not where it lies."""
    lots: Lots | None

    def expected(self) -> int | None:
        """Prompts if none is doubled; None where the source has not said."""
        rows = self.source.count()
        if rows is None or self.lots is None:
            return rows
        return round(self.lots.stop * rows) - round(self.lots.start * rows)

    def cut(self, prompts: dict[str, Row]) -> dict[str, Row]:
        """Those of the distinct prompts of the source that are of this portion."""
        if self.lots is None:
            return prompts
        seed, count = self.lots.seed, len(prompts)
        drawn = sorted(prompts, key=lambda prompt: hashlib.sha256(f"{seed}\n{prompt}".encode()).digest())
        return {
            prompt: prompts[prompt] for prompt in drawn[round(self.lots.start * count) : round(self.lots.stop * count)]
        }


class Distinct(NamedTuple):
    """What a source holds."""

    prompts: dict[str, Row]
    """PROMPTS rows by id; of several that say the same the first is kept."""
    read: int


@config
class Prompts:
    """Prompts `start` to `start + count` of a portion, without those asked in earlier parts or held out."""

    kind: ClassVar[str] = "prompts"
    version: ClassVar[int] = 2
    resumable: ClassVar[bool] = False

    part: Portion
    earlier: tuple[Portion, ...]
    """Parts of earlier iterations: what any of them asks is not asked again."""
    held_out: Portion | None
    """Null: these are the held-out prompts themselves."""
    start: NonNegativeInt
    count: PositiveInt | None
    """Null: all."""

    @property
    def expected(self) -> int:
        """Rows if no prompt is left out; 0 when unknown."""
        return self.count or self.part.expected() or 0

    def __call__(self, *inputs: Path, out: Path) -> None:
        for portion in (self.part, *self.earlier, *filter(None, [self.held_out])):
            _check_unchanged(portion)
        read = cache(_read)  # several portions of one source are read once
        found = read(self.part.source, self.part.columns)
        own = self.part.cut(found.prompts)
        held_out = {_text(row) for row in _rows(self.held_out, read).values()} if self.held_out else set()
        before = {prompt for portion in self.earlier for prompt in _rows(portion, read)}
        clean = {prompt: row for prompt, row in own.items() if _text(row) not in held_out}
        left = [row for prompt, row in clean.items() if prompt not in before]
        rows = left[self.start : None if self.count is None else self.start + self.count]
        metrics = {
            "rows_read": found.read,
            "doubled": found.read - len(found.prompts),
            "leaked": len(own) - len(clean),
            "asked_before": len(clean) - len(left),
            "rows_left": len(left),
            "rows": len(rows),
        }
        _say(self.part.source.label, metrics)
        if not rows:
            raise UserError(f"{self.part.source.name}: no prompts are left for this part; the line above says why")
        write_rows(out, rows, PROMPTS)
        write_metrics(out, metrics)


def _check_unchanged(portion: Portion) -> None:
    if portion.source.content() != portion.content:
        raise UserError(f"{portion.source.path}: changed since the run was started; start it again")


def _read(source: Source, columns: Columns) -> Distinct:
    prompts, read = {}, 0
    for placed in read_columns(source, columns.wanted):
        read += 1
        row = columns.prompt_row(placed, source.label)
        prompts.setdefault(row["prompt_id"], row)
    return Distinct(prompts, read)


def _rows(portion: Portion, read: Callable[[Source, Columns], Distinct]) -> dict[str, Row]:
    return portion.cut(read(portion.source, portion.columns).prompts)


def _text(row: Row) -> str:
    return same_text(row["messages"])


def _say(label: str, metrics: dict[str, int]) -> None:
    reasons = {"doubled": "doubled", "asked_before": "of earlier parts", "leaked": "held out"}
    told = [f"{metrics[name]:,} {reason}" for name, reason in reasons.items() if metrics[name]]
    taken = f"{metrics['rows']:,} of {metrics['rows_left']:,} from {label}"
    print(f"prompts: {taken}; left out: {', '.join(told) or 'none'}", flush=True)
