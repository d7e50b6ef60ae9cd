"""What the stages of MT-Bench hand each other: columns, names of files, and the few functions that read them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import pyarrow as pa

from src.kernel.config import UserError
from src.kernel.rows import RESPONSES, Row, prompt_id, read_rows

TURNS = (1, 2)
SOURCE = "mt_bench/"
"""Before the question's id, the source of PROMPTS rows."""
MODEL_JUDGMENTS = "model_judgment"
"""Folder of the only file of judgments."""
HIGHEST = 10
UNRATED = -1
"""The score, in FastChat's files, of a reply without a rating."""

QUESTIONS = pa.schema(
    {
        "question_id": pa.int64(),
        "category": pa.string(),
        "turns": pa.list_(pa.string()),  # two
        "reference": pa.list_(pa.string()),  # an answer to each turn, where the judge is shown them; else null
    }
)
REQUESTS = pa.schema(
    {
        "question_id": pa.int64(),
        "turn": pa.int64(),  # 1 or 2
        "model": pa.string(),  # whose answers are judged
        "prompt": pa.string(),  # name of the judge prompt
        "system_prompt": pa.string(),
        "user_prompt": pa.string(),
    }
)


def of_categories(questions: Path, categories: Collection[str]) -> list[Row]:
    return [row for row in read_rows(questions, QUESTIONS) if row["category"] in categories]


def prompt_row(question: int, said: list[str]) -> Row:
    """A PROMPTS row. `said` by user, assistant, user, …

    Its id is that of the messages, not the question's: the answers to both turns may lie in one folder of cells.
    """
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
    own = {"prompt_id": prompt_id(messages), "messages": messages}
    return own | {"source": f"{SOURCE}{question}", "checks": "[]"}


def question_of(row: Row) -> int:
    """Of a row that began as `prompt_row`."""
    return int(row["source"].removeprefix(SOURCE))


def answers_of(responses: Path) -> dict[int, Row]:
    """Question -> the only answer to it, its text without white space around it, as FastChat keeps it."""
    rows = read_rows(responses, RESPONSES)
    return {question_of(row): row["responses"][0] | {"text": row["responses"][0]["text"].strip()} for row in rows}


def refuse_missing(key: str, wanted: Iterable[int], given: Collection[int], turn: int) -> None:
    """Raises UserError for questions whose prompt was too long to be answered. `key`: of the benchmark."""
    missing = [str(question) for question in wanted if question not in given]
    if missing:
        raise UserError(
            f"{key}.max_prompt_tokens: the prompts of turn {turn} of question {', '.join(missing)} have more, so there "
            "is no answer; raise it as far as the policy's context allows"
        )
