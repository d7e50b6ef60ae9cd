"""Reads answers from elsewhere that lie in files or data sets.

In: prompts. Out: OUTSIDE rows in the order of the prompts, and `metrics.json` with the rows of the source, those that
answer none of the prompts (unused), and those of a prompt that an earlier row has answered (doubled); and signs of a
collapse (src/data/checks.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt

from src.data.collapse import collapse_warnings, outside_signs
from src.data.outside.source import OUTSIDE
from src.data.prompts import Columns
from src.data.source import Source, read_columns
from src.kernel.artifact import Stage
from src.kernel.config import Free, UserError, config
from src.kernel.rows import PROMPTS, Row, read_rows, write_metrics, write_rows

Name = Annotated[str, Field(min_length=1)]


@config
class AnswerFile:
    """A column of answers beside the column that says which prompt each row answers."""

    path: Free[str]
    """A .jsonl, .parquet or .csv file, or a folder of them; with a split a hub id, or a folder laid out as a set."""
    split: str | None
    subset: str | None
    revision: Free[str | None]
    prompt_id: str | None
    """Column of the ids of prompts in this store. At most one of this, `prompt` and `messages` is named."""
    prompt: str | None
    """Column of text."""
    messages: str | None
    """Column of turns, the last of them the user's."""
    answer: Name
    """Column of text, or of turns whose last is the answer; the turns before it are the prompt if none is named."""
    source: Name | None
    """Who gave the answers; null: `source_column` says, else the name of the file or set."""
    source_column: Name | None
    max_answer_tokens: PositiveInt

    def __post_init__(self) -> None:
        named = [name for name in ("prompt_id", "prompt", "messages") if getattr(self, name)]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)}: name one of them, and leave the other null")
        if self.source and self.source_column:
            raise ValueError("source and source_column: name one of them, and leave the other null")
        self.rows()

    def rows(self) -> Source:
        return Source(path=self.path, split=self.split, subset=self.subset, revision=self.revision)

    def stage(self, key: str) -> Stage:
        try:
            return ReadAnswers(file=self, content=self.rows().content(), key=key)
        except UserError as error:
            raise UserError(f"{key}.path: {error}") from None

    @property
    def wanted(self) -> set[str]:
        """Columns to read."""
        named = self.prompt_id or self.prompt or self.messages
        own = {named} if named else {"prompt", "messages"}
        return own | {self.answer} | ({self.source_column} if self.source_column else set())


@config
class ReadAnswers:
    kind: ClassVar[str] = "outside"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    file: AnswerFile
    content: str
    """Of the file when the run was planned: the key follows what it says, not where it lies."""
    key: Free[str]

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows = self.file.rows()
        if rows.content() != self.content:
            raise UserError(f"{self.key}.path: {rows.path} changed since the run was started; start it again")
        asked = [row["prompt_id"] for row in read_rows(inputs[0], PROMPTS)]
        wanted, found = set(asked), dict[str, Row]()
        read = unused = 0
        for place, row in read_columns(rows, self.file.wanted):
            read += 1
            answer = self._answer_row(place, row)
            if answer["prompt_id"] in wanted:
                found.setdefault(answer["prompt_id"], answer)  # the first row of each prompt
            else:
                unused += 1
        counts = {"rows": read, "unused": unused, "doubled": read - unused - len(found)}
        if not found:
            none = f"none of the {counts['rows']:,} rows of {rows.name} answers any of {len(asked):,} prompts"
            raise UserError(f"{self.key}: {none}; do they give these to the letter?")
        kinds = f"{unused:,} for other prompts, {counts['doubled']:,} for a prompt that an earlier row answers"
        print(f"{self.key}: {counts['rows']:,} rows read: {len(found):,} used, {kinds}", flush=True)
        write_rows(out, (found[prompt] for prompt in asked if prompt in found), OUTSIDE)
        numbers = counts | outside_signs([row["text"] for row in found.values()], len(asked))
        write_metrics(out, numbers)
        for line in collapse_warnings(numbers):
            print(f"{self.key}: warning: {line}", flush=True)

    def _answer_row(self, place: str, row: Row) -> Row:
        text, before = _answer(place, self.file.answer, self._cell(place, row, self.file.answer))
        return {
            "prompt_id": self._prompt_id(place, row, before),
            "text": text,
            "finish_reason": "stop",
            "seed": None,
            "source": self._source(place, row),
        }

    def _prompt_id(self, place: str, row: Row, before: list[Any]) -> str:
        """Finds which prompt a row answers: by id, by its prompt, or by the turns before the answer."""
        file, named = self.file, self.file.prompt or self.file.messages
        if column := file.prompt_id:
            value = self._cell(place, row, column)
            if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{16}", value):
                known = f"{value!r} is no prompt_id of this store (16 hex digits)"
                raise UserError(f"{place}: {column}: {known}; name the prompt itself in {self.key}.prompt")
            return value
        if not named and before:
            columns, row = Columns(messages=file.answer), {file.answer: before}
        else:
            columns = Columns(prompt=file.prompt, messages=file.messages)
            self._cell(place, row, named or ("prompt" if "prompt" in row else "messages"))
        shown = {name: row[name] for name in columns.wanted if name in row and name not in ("source", "checks")}
        return columns.prompt_row((place, shown), file.answer)["prompt_id"]

    def _source(self, place: str, row: Row) -> str:
        column = self.file.source_column
        if column is None:
            return self.file.source or self.file.rows().label
        value = self._cell(place, row, column)
        if not isinstance(value, str) or not value:
            mend = f"say who answered, or name another column in {self.key}.source_column"
            raise UserError(f"{place}: {column}: {value!r} names no source; {mend}")
        return value.encode("utf-8", "replace").decode()

    def _cell(self, place: str, row: Row, column: str) -> Any:
        if column not in row:
            raise UserError(f"{place}: no column {column!r}; name the right one below {self.key}")
        return row[column]


def _answer(place: str, column: str, value: Any) -> tuple[str, list[Any]]:
    """Returns the text, and the turns before it; null is an empty answer."""
    if isinstance(value, list) and value:
        *before, last = value
        if not isinstance(last, dict) or last.get("role") != "assistant":
            raise UserError(f"{place}: {column}: the last turn is not the assistant's; a column of turns ends in it")
        return _answer(place, column, last.get("content"))[0], before
    if value is None or value == []:
        return "", []
    if not isinstance(value, str):
        raise UserError(f"{place}: {column}: {type(value).__name__}, neither text nor a list of turns; delete the row")
    return value.encode("utf-8", "replace").decode(), []
