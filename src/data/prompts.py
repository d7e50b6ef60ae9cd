"""The stage that writes the prompts of an iteration, or those held out.

Out: PROMPTS rows, and `metrics.json` with counts. rows_read and doubled are of the source. leaked (held out),
asked_before (in an earlier part) and rows_left are of this part. rows are written.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, NonNegativeInt, PositiveInt, ValidationError
from pydantic_core import from_json

from src.data import checks
from src.data.source import Placed, Source, read_columns
from src.kernel.config import Share, UserError, config, explain
from src.kernel.rows import PROMPTS, Row, prompt_id, write_metrics, write_rows

Messages = list[dict[str, str]]
LONGEST = 300
"""Characters of a message about a row."""


def _listed(value: Any) -> Any:
    """Read a list, or JSON text of one as in a CSV, and drop the null keys that Parquet gives every object."""
    items = from_json(value) if isinstance(value, str) else value
    if not isinstance(items, list):
        return items
    return [{k: v for k, v in item.items() if v is not None} if isinstance(item, dict) else item for item in items]


class _Turn(BaseModel, strict=True, extra="forbid"):
    role: Literal["system", "user", "assistant"]
    content: str


class _Columns(BaseModel, strict=True):
    """The columns of a row, under our names."""

    prompt: Annotated[list[_Turn], BeforeValidator(_listed), Field(min_length=1)]
    source: str
    checks: Annotated[list[Annotated[dict[str, Any], AfterValidator(checks.validate)]], BeforeValidator(_listed)]


@config
class Columns:
    """Which column holds the prompt. Neither named: `prompt` where a row has it, else `messages`."""

    prompt: str | None = None
    """A column of text: what the user says."""
    messages: str | None = None
    """A column of turns, `[{"role": "user", "content": "…"}]`, or the same as JSON text; the last one is the user's."""

    def __post_init__(self) -> None:
        if self.prompt is not None and self.messages is not None:
            raise ValueError("prompt and messages: name one of them, and leave the other null")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The columns to read."""
        named = self.prompt or self.messages
        return (*((named,) if named else ("prompt", "messages")), "source", "checks")

    def prompt_row(self, placed: Placed, label: str) -> Row:
        """Return the PROMPTS row; `label` is the source of a row that names none. Raises UserError in one line."""
        place, row = placed
        named = self.prompt or self.messages
        name = named or ("messages" if row.get("prompt") is None and "messages" in row else "prompt")
        if name not in row:
            known = repr(named) if named else "'prompt' or 'messages'"
            raise UserError(f"{place}: no column {known}; name that of the prompt in `prompt` (text) or `messages`")
        value: Any = row[name]
        if name == self.prompt or (named is None and name == "prompt"):
            if not isinstance(value, str):
                raise UserError(f"{place}: {name}: {value!r:.99} is no text; a column of turns is named in `messages`")
            value = [{"role": "user", "content": value}]
        try:
            columns = _Columns(prompt=value, source=row.get("source") or label, checks=row.get("checks") or [])
        except ValidationError as error:
            message = re.sub("^prompt", lambda _: name, explain(error, ""))
            raise UserError(f"{place}: {message[:LONGEST]}; mend the row") from None
        messages = [turn.model_dump() for turn in columns.prompt]
        if (role := messages[-1]["role"]) != "user":
            raise UserError(f"{place}: {name}: the last turn is by {role!r}, must be the user's; take the answer off")
        if not all(turn["content"].strip() for turn in messages if turn["role"] == "user"):
            raise UserError(f"{place}: {name}: empty, or only white space; write the prompt or delete the row")
        listed = json.dumps(columns.checks, ensure_ascii=False)
        return {"prompt_id": prompt_id(messages), "messages": messages, "source": columns.source, "checks": listed}


def same_text(messages: Messages) -> str:
    """Return 32 hex digits, equal for prompts that differ in case, white space or Unicode form (NFKC) only."""

    def normal(text: str) -> str:  # normalised twice, because folding ß under an accent undoes it
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        return " ".join(folded.split())

    turns = [[m["role"], normal(m["content"])] for m in messages]
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()[:32]


@config
class Lots:
    """A cut from share `start` to share `stop` of the prompts, in random order.

    The order depends on the seed and each prompt, not on its place, so shuffled rows make the same
    parts.
    """

    seed: NonNegativeInt
    start: Share
    stop: Share

    def bounds(self, count: int) -> slice:
        return slice(round(self.start * count), round(self.stop * count))


@config
class Portion:
    """Distinct prompts of a source: all in their order, or those between two lots."""

    source: Source
    columns: Columns
    content: str
    """Content of the source when the run was planned: the key follows what it says, not where it lies."""
    lots: Lots | None

    def expected(self) -> int | None:
        """Return the number of prompts if none is doubled; None where the source does not tell it."""
        rows = self.source.count()
        return rows if rows is None or self.lots is None else len(range(rows)[self.lots.bounds(rows)])

    def cut(self, prompts: dict[str, Row]) -> dict[str, Row]:
        """Return this portion of the distinct prompts of the source."""
        if self.lots is None:
            return prompts
        seed = self.lots.seed
        drawn = sorted(prompts, key=lambda prompt: hashlib.sha256(f"{seed}\n{prompt}".encode()).digest())
        return {prompt: prompts[prompt] for prompt in drawn[self.lots.bounds(len(prompts))]}


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
        """Number of rows if no prompt is left out; 0 when unknown."""
        return self.count or self.part.expected() or 0

    def __call__(self, *inputs: Path, out: Path) -> None:
        for portion in filter(None, (self.part, *self.earlier, self.held_out)):
            if portion.source.content() != portion.content:
                raise UserError(f"{portion.source.path}: changed since the run was started; start it again")

        @cache  # several portions of one source are read once
        def distinct(source: Source, columns: Columns) -> tuple[dict[str, Row], int]:
            """Return the first row of each prompt by id, and the number of all rows."""
            first: dict[str, Row] = {}
            count = 0
            for placed in read_columns(source, columns.wanted):
                count += 1
                row = columns.prompt_row(placed, source.label)
                first.setdefault(row["prompt_id"], row)
            return first, count

        def prompts(portion: Portion) -> dict[str, Row]:
            return portion.cut(distinct(portion.source, portion.columns)[0])

        unique, rows_read = distinct(self.part.source, self.part.columns)
        part = prompts(self.part)
        held_out = {same_text(row["messages"]) for row in prompts(self.held_out).values()} if self.held_out else set()
        before = {prompt for portion in self.earlier for prompt in prompts(portion)}
        clean = {prompt: row for prompt, row in part.items() if same_text(row["messages"]) not in held_out}
        left = [row for prompt, row in clean.items() if prompt not in before]
        rows = left[self.start : None if self.count is None else self.start + self.count]
        doubled, leaked, asked = rows_read - len(unique), len(part) - len(clean), len(clean) - len(left)
        left_out = f"left out: {doubled:,} doubled, {asked:,} asked in earlier parts, {leaked:,} held out too"
        print(f"prompts: {len(rows):,} of {len(left):,} from {self.part.source.label}; {left_out}", flush=True)
        if not rows:
            raise UserError(f"{self.part.source.name}: no prompts are left for this part; the line above says why")
        write_rows(out, rows, PROMPTS)
        counts = {"rows_read": rows_read, "doubled": doubled, "leaked": leaked, "asked_before": asked}
        write_metrics(out, counts | {"rows_left": len(left), "rows": len(rows)})
