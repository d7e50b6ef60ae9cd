"""The questions of IFEval: prompts, and beside them which instructions an answer to each has to follow.

Out: PROMPTS rows, and `instructions.jsonl`: a line a row with key, prompt, instruction_id_list and kwargs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PositiveInt

from src.data.prompts import Columns
from src.data.source import Source, read_columns
from src.evaluation.ifeval.checker import Question, drawn, load
from src.evaluation.ifeval.instructions import INSTRUCTIONS
from src.kernel.config import UserError, config
from src.kernel.rows import PROMPTS, Row, write_metrics, write_rows

COLUMNS = ("key", "prompt", "instruction_id_list", "kwargs")


@config
class IFEvalQuestions:
    """The questions of a file or data set in the official format, or the first of them."""

    kind: ClassVar[str] = "ifeval_questions"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    source: Source
    content: str
    """Of the source when the run was planned: the key follows what it says, not where it lies."""
    first: PositiveInt | None
    """Null: all."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        if self.source.content() != self.content:
            raise UserError(f"{self.source.path}: changed since the run was started; start it again")
        placed = list(read_columns(self.source, COLUMNS))[: self.first]
        load()
        questions = [_question(*one) for one in placed]
        lots = [key for one, (place, _) in zip(questions, placed, strict=True) for key in _drawn(place, one)]
        rows = [Columns(prompt="prompt").prompt_row(one, self.source.label) for one in placed]
        places = [place for place, _ in placed]
        _refuse_doubled("key", places, [question["key"] for question in questions])
        _refuse_doubled("prompt", places, [row["prompt_id"] for row in rows])
        write_rows(out, rows, PROMPTS)
        lines = (json.dumps(question, ensure_ascii=False) + "\n" for question in questions)
        (out / INSTRUCTIONS).write_text("".join(lines), encoding="utf-8")
        instructions = sum(len(question["instruction_id_list"]) for question in questions)
        if lots:
            print(f"ifeval: what these ask for is not definite, the checker draws it: {', '.join(lots)}", flush=True)
        numbers = {"rows": len(rows), "instructions": instructions, "drawn": len(lots)}
        write_metrics(out, numbers)


def _question(place: str, row: Row) -> Question:
    missing = next((name for name in COLUMNS if row.get(name) is None), None)
    if missing:
        raise UserError(f"{place}: no {missing}; a row of IFEval has {', '.join(COLUMNS)}")
    key, ids, values = row["key"], row["instruction_id_list"], row["kwargs"]
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise UserError(f"{place}: key: {key!r} is no number or text; give each row one of its own")
    if not _lists_of(str, ids) or not ids:
        raise UserError(f"{place}: instruction_id_list: {_shown(ids)} is no list of names; give at least one")
    if not _lists_of(dict, values) or len(values) != len(ids):
        raise UserError(
            f"{place}: kwargs: must be a list of {len(ids)} objects, one an instruction; got {_shown(values)}"
        )
    kwargs = [{name: value for name, value in one.items() if value is not None} for one in values]
    try:
        json.dumps([key, kwargs], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: key or kwargs: half of a character (a lone surrogate); take it out") from None
    return {"key": str(key), "prompt": row["prompt"], "instruction_id_list": ids, "kwargs": kwargs}


def _drawn(place: str, question: Question) -> Iterator[str]:
    """The instructions whose values the checker draws. Raises UserError for those it cannot check."""
    for instruction, given in zip(question["instruction_id_list"], question["kwargs"], strict=True):
        try:
            if drawn(instruction, given):
                yield f"{instruction} of key {question['key']}"
        except ValueError as error:
            raise UserError(f"{place}: {error}; correct or delete the row") from None


def _lists_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, kind) for one in value)


def _refuse_doubled(what: str, places: list[str], values: list[str]) -> None:
    first: dict[str, str] = {}
    for place, value in zip(places, values, strict=True):
        if value in first:
            raise UserError(f"{place}: the same {what} as {first[value]}; delete one of the rows")
        first[value] = place


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
