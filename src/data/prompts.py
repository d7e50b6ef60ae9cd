"""The stage that writes the prompts of an iteration, or those held out.

Out: PROMPTS rows, and `metrics.json` with what was left out: rows_read from the source, doubled there; of this part
leaked (held out), asked_before (in an earlier part), rows_left after that, and rows, which are asked.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from src.data import checks
from src.data.source import Placed, Source, read_columns
from src.kernel.config import Share, UserError, config
from src.kernel.rows import PROMPTS, Row, prompt_id, write_metrics, write_rows

Messages = list[dict[str, str]]


class _Turn(BaseModel, strict=True, extra="forbid"):
    role: Literal["system", "user", "assistant"]
    content: str


_TURNS = TypeAdapter(Annotated[list[_Turn], Field(min_length=1)])
_OBJECTS = TypeAdapter(list[dict[str, Any]])


class _Refused(Exception):
    """What is wrong with a row."""


@config
class Columns:
    """Which column holds the prompt. Neither named: `prompt` where a row has it, else `messages`."""

    prompt: str | None = None
    """Of text: what the user says."""
    messages: str | None = None
    """Of turns, `[{"role": "user", "content": "…"}]`, or the same as JSON text; the last one is the user's."""

    def __post_init__(self) -> None:
        if self.prompt is not None and self.messages is not None:
            raise ValueError("prompt and messages: name one of them, and leave the other null")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The columns to read."""
        named = self.prompt or self.messages
        return (*((named,) if named else ("prompt", "messages")), "source", "checks")

    def prompt_row(self, placed: Placed, label: str) -> Row:
        """Makes the PROMPTS row; `label` is the source of a row that names none. Raises UserError in one line."""
        place, row = placed
        try:
            messages = self._messages(row)
            _refuse_half_characters("the prompt", "".join(m["content"] for m in messages))
            source = row.get("source") or label
            if not isinstance(source, str):
                raise _Refused(f"source: {_short(source)} is no text; write who wrote the prompt, or leave it out")
            _refuse_half_characters("source", source)
            instructions = _validated(_OBJECTS, "checks", row.get("checks") or [])
            for check in instructions:
                try:
                    checks.validate(check)
                except ValueError as error:
                    raise _Refused(f"checks: {error}") from None
            listed = json.dumps(instructions, ensure_ascii=False)
            _refuse_half_characters("checks", listed)
        except _Refused as refused:
            raise UserError(f"{place}: {refused}") from None
        return {"prompt_id": prompt_id(messages), "messages": messages, "source": source, "checks": listed}

    def _messages(self, row: Row) -> Messages:
        named = self.prompt or self.messages
        turns = self.messages is not None or (named is None and row.get("prompt") is None and "messages" in row)
        name = named or ("messages" if turns else "prompt")
        if name not in row:
            known = repr(named) if named else "'prompt' or 'messages'"
            remedy = "name the one that holds the prompt in data.prompt or data.messages (data=local)"
            raise _Refused(f"no column {known}; {remedy}")
        value = row[name]
        if not turns:
            if isinstance(value, list):
                raise _Refused(
                    f"{name}: a list, not text; a column of turns is named by data.messages={name} (data=local)"
                )
            if not isinstance(value, str):
                raise _Refused(f"{name}: {_short(value)} is no text; write text or delete the row")
            messages = [{"role": "user", "content": value}]
        else:
            objects = _validated(_OBJECTS, name, value)
            given = [{key: v for key, v in turn.items() if v is not None} for turn in objects]  # Parquet has all keys
            messages = [turn.model_dump() for turn in _validated(_TURNS, name, given)]
        if messages[-1]["role"] != "user":
            role = messages[-1]["role"]
            raise _Refused(f"{name}: the last turn is by {role!r}, must be the user's; take the answer off")
        if not all(m["content"].strip() for m in messages if m["role"] == "user"):
            raise _Refused(f"{name}: empty, or only white space; write the prompt or delete the row")
        return messages


def _validated(adapter: TypeAdapter, name: str, value: Any) -> Any:
    """Checks a value of a row, or the same as JSON text."""
    try:
        _refuse_half_characters(name, value if isinstance(value, str) else "")
        return adapter.validate_json(value) if isinstance(value, str) else adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f", item {part + 1}" if isinstance(part, int) else f", {part}" for part in first["loc"])
        raise _Refused(f"{name}{place}: {first['msg']}, not {_short(first['input'])}; mend the row") from None


def _refuse_half_characters(name: str, text: str) -> None:
    """JSON can spell half of a character, which no file of text can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise _Refused(f"{name}: {half} is half of a character (a lone surrogate); take it out") from None


def _short(value: Any) -> str:
    """Shows a value on one line, no longer than helps."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def same_text(messages: Messages) -> str:
    """Returns 32 hex digits, equal for prompts that differ in case, white space or Unicode form (NFKC) only."""

    def normal(text: str) -> str:  # normal form twice: folding ß under an accent leaves it
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        return " ".join(folded.split())

    turns = [[m["role"], normal(m["content"])] for m in messages]
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()[:32]


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
        """Counts the prompts if none is doubled; None where the source has not said."""
        rows = self.source.count()
        if rows is None or self.lots is None:
            return rows
        return round(self.lots.stop * rows) - round(self.lots.start * rows)

    def cut(self, prompts: dict[str, Row]) -> dict[str, Row]:
        """Picks this portion out of the distinct prompts of the source."""
        if self.lots is None:
            return prompts
        seed, count = self.lots.seed, len(prompts)
        drawn = sorted(prompts, key=lambda prompt: hashlib.sha256(f"{seed}\n{prompt}".encode()).digest())
        return {
            prompt: prompts[prompt] for prompt in drawn[round(self.lots.start * count) : round(self.lots.stop * count)]
        }


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
        others = [*self.earlier, *filter(None, [self.held_out])]
        for portion in (self.part, *others):
            if portion.source.content() != portion.content:
                raise UserError(f"{portion.source.path}: changed since the run was started; start it again")

        @cache  # several portions of one source are read once
        def distinct(source: Source, columns: Columns) -> tuple[dict[str, Row], int]:
            """Reads the PROMPTS rows by id, of several that say the same the first; and counts all rows."""
            first: dict[str, Row] = {}
            read = 0
            for placed in read_columns(source, columns.wanted):
                read += 1
                row = columns.prompt_row(placed, source.label)
                first.setdefault(row["prompt_id"], row)
            return first, read

        def prompts(portion: Portion) -> dict[str, Row]:
            return portion.cut(distinct(portion.source, portion.columns)[0])

        unique, read = distinct(self.part.source, self.part.columns)
        mine = prompts(self.part)
        held_out = {same_text(row["messages"]) for row in prompts(self.held_out).values()} if self.held_out else set()
        before = {prompt for portion in self.earlier for prompt in prompts(portion)}
        clean = {prompt: row for prompt, row in mine.items() if same_text(row["messages"]) not in held_out}
        left = [row for prompt, row in clean.items() if prompt not in before]
        rows = left[self.start : None if self.count is None else self.start + self.count]
        metrics = {
            "rows_read": read,
            "doubled": read - len(unique),
            "leaked": len(mine) - len(clean),
            "asked_before": len(clean) - len(left),
            "rows_left": len(left),
            "rows": len(rows),
        }
        reasons = {"doubled": "doubled", "asked_before": "of earlier parts", "leaked": "held out"}
        left_out = ", ".join(f"{metrics[name]:,} {reason}" for name, reason in reasons.items() if metrics[name])
        taken = f"{len(rows):,} of {len(left):,} from {self.part.source.label}"
        print(f"prompts: {taken}; left out: {left_out or 'none'}", flush=True)
        if not rows:
            raise UserError(f"{self.part.source.name}: no prompts are left for this part; the line above says why")
        write_rows(out, rows, PROMPTS)
        write_metrics(out, metrics)
