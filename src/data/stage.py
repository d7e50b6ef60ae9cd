"""Prompts: rows from a JSON-lines file, a slice of it an iteration.

Out: PROMPTS rows. One line of the file: `messages` (list of role/content), optional `source` and `checks`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

from pydantic import Field, NonNegativeInt, PositiveInt

from src import records
from src.artifact import Stage, sha256
from src.config import Free, UserError, YamlPath, config


@runtime_checkable
class Data(Protocol):
    """Where prompts come from."""

    name: str
    prompts_per_iteration: int
    held_out_prompts: int

    def part(self, iteration: int) -> Stage: ...

    def held_out(self) -> Stage: ...


@config
class Prompts:
    """Rows `start` to `start + count` of a file."""

    kind: ClassVar[str] = "prompts"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    file: Free[YamlPath]
    content: str
    """sha256 of the file: the key follows what it says, not where it lies."""
    start: NonNegativeInt
    count: PositiveInt

    def __call__(self, *inputs: Path, out: Path) -> None:
        lines = self.file.read_text().splitlines()
        if len(lines) < self.start + self.count:
            raise UserError(
                f"{self.file}: has {len(lines)} prompts, rows {self.start} to {self.start + self.count} are asked for; "
                "lower data.prompts_per_iteration or data.held_out_prompts"
            )
        rows = [self._row(number, lines[number]) for number in range(self.start, self.start + self.count)]
        unique = {row["prompt_id"]: row for row in rows}
        if len(unique) < len(rows):
            print(f"prompts: {len(rows) - len(unique)} doubled prompts left out")
        records.write_rows(out, unique.values(), records.PROMPTS)

    def _row(self, number: int, line: str) -> records.Row:
        try:
            entry = json.loads(line)
            messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in entry["messages"]]
            return self._complete(entry, messages)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{self.file}:{number + 1}: not a prompt row ({error!r})") from None

    def _complete(self, entry: dict[str, Any], messages: list[dict[str, str]]) -> records.Row:
        return {
            "prompt_id": records.prompt_id(messages),
            "messages": messages,
            "source": entry.get("source", self.file.stem),
            "checks": json.dumps(entry.get("checks", []), ensure_ascii=False),
        }


@config
class PromptFiles:
    """Files of prompts: iteration t reads part t; past the last part, the next slice of the first, and so on."""

    name: Free[str]
    parts: Annotated[tuple[YamlPath, ...], Field(strict=False, min_length=1)]
    held_out_file: YamlPath
    prompts_per_iteration: PositiveInt
    held_out_prompts: PositiveInt

    def part(self, iteration: int) -> Stage:
        """The prompts of iteration 1, 2, …"""
        turn, index = divmod(iteration - 1, len(self.parts))
        return self._slice(
            self.parts[index], "data.parts", turn * self.prompts_per_iteration, self.prompts_per_iteration
        )

    def held_out(self) -> Stage:
        return self._slice(self.held_out_file, "data.held_out_file", 0, self.held_out_prompts)

    def _slice(self, file: Path, key: str, start: int, count: int) -> Prompts:
        if not file.is_file():
            raise UserError(f"{key}: no file {file}")
        return Prompts(file=file, content=sha256(file), start=start, count=count)
