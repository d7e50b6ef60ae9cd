"""Prompts: rows from a JSON-lines file, a slice of it an iteration.

Out: PROMPTS rows. One line of the file: `messages` (list of role/content), optional `source` and `checks`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from src import checks, records
from src.artifact import Stage, sha256
from src.config import Free, UserError, YamlPath, config, explain


@runtime_checkable
class Data(Protocol):
    """Where prompts come from."""

    prompts_per_iteration: int
    held_out_prompts: int

    def part(self, iteration: int) -> Stage: ...

    def held_out(self) -> Stage: ...


@config
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


@config
class Line:
    """One line of a prompt file."""

    messages: Annotated[list[Message], Field(min_length=1)]
    source: str | None = None
    checks: list[dict[str, Any]] = Field(default_factory=list)

    def __post_init__(self) -> None:
        if self.messages[-1].role != "user":
            raise ValueError("messages: the last one must be the user's")
        for check in self.checks:
            checks.validate(check)


_LINE = TypeAdapter(Line)


@config
class Prompts:
    """Rows `start` to `start + count` of a file."""

    kind: ClassVar[str] = "prompts"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    file: Free[YamlPath]
    content: str
    """sha256 of the file: the key follows what it says, not where it lies."""
    source: str
    """Of rows that do not name one."""
    start: NonNegativeInt
    count: PositiveInt

    def __call__(self, *inputs: Path, out: Path) -> None:
        if sha256(self.file) != self.content:
            raise UserError(f"{self.file}: changed since the run was started; start it again")
        lines = file_lines(self.file)
        rows = [self._row(number, lines[number]) for number in range(self.start, self.start + self.count)]
        unique = {row["prompt_id"]: row for row in rows}
        if len(unique) < len(rows):
            print(f"prompts: {len(rows) - len(unique)} doubled prompts left out")
        records.write_rows(out, unique.values(), records.PROMPTS)

    def _row(self, number: int, text: str) -> records.Row:
        try:
            line = _LINE.validate_json(text)
        except ValidationError as error:
            raise UserError(f"{self.file}:{number + 1}: not a prompt row: {explain(error, '')}") from None
        messages = [{"role": m.role, "content": m.content} for m in line.messages]
        return {
            "prompt_id": records.prompt_id(messages),
            "messages": messages,
            "source": line.source or self.source,
            "checks": json.dumps(line.checks, ensure_ascii=False),
        }


def file_lines(file: Path) -> list[str]:
    """Lines end at a line feed only: a prompt may hold any other character that Unicode calls a line break."""
    try:
        return file.read_bytes().decode("utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 ({error})") from None


@config
class PromptFiles:
    """Files of prompts: iteration t reads part t; past the last part, the next slice of the first, and so on."""

    parts: Annotated[tuple[YamlPath, ...], Field(strict=False, min_length=1)]
    held_out_file: YamlPath
    prompts_per_iteration: PositiveInt
    held_out_prompts: PositiveInt

    def part(self, iteration: int) -> Stage:
        """The prompts of iteration 1, 2, …"""
        turn, index = divmod(iteration - 1, len(self.parts))
        count = self.prompts_per_iteration
        return _slice(self.parts[index], ("data.parts", "data.prompts_per_iteration"), turn * count, count)

    def held_out(self) -> Stage:
        keys = ("data.held_out_file", "data.held_out_prompts")
        return _slice(self.held_out_file, keys, 0, self.held_out_prompts)


def _slice(file: Path, keys: tuple[str, str], start: int, count: int) -> Prompts:
    """Rows of a file; `keys` name the file and the count in the config."""
    if not file.is_file():
        raise UserError(f"{keys[0]}: no file {file}")
    present = len(file_lines(file))
    if present < start + count:
        raise UserError(
            f"{keys[1]}: {file} has {present} prompts, rows {start + 1} to {start + count} are asked for; lower it"
        )
    return Prompts(file=file, content=sha256(file), source=file.stem, start=start, count=count)
