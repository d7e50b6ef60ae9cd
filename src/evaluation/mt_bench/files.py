"""FastChat's files: questions, reference answers, judge prompts; and the columns that MT-Bench's stages exchange."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, NamedTuple

import pyarrow as pa
from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from src.data.source import Source, read_columns
from src.evaluation.foreign_rows import Text, checked
from src.kernel.config import UserError
from src.kernel.rows import Row

TURNS = (1, 2)
HIGHEST = 10
UNRATED = -1
"""The score, in FastChat's files, of a reply without a rating."""
MODEL_ANSWERS, MODEL_JUDGMENTS = "model_answer", "model_judgment"
"""Folders; `<model>.jsonl` and `<judge>_single.jsonl` in them are what FastChat calls so."""
REFERENCED = ("math", "reasoning", "coding", "arena-hard-200")
"""Categories in which the judge is shown reference answers."""
RATING = "[[rating]]"
"""Output format of a prompt that asks for one rating."""
_BOTH = ("question_1", "question_2", "answer_1", "answer_2")
SHOWN = {
    "single-v1": ("question", "answer"),
    "single-math-v1": ("question", "answer", "ref_answer_1"),
    "single-v1-multi-turn": _BOTH,
    "single-math-v1-multi-turn": (*_BOTH, "ref_answer_1", "ref_answer_2"),
}
"""The judge prompts that are used, and what each must show."""

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


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


Filled = Annotated[Text, AfterValidator(_filled)]
QuestionId = Annotated[int, Field(ge=0, lt=2**31)]
Turns = Annotated[list[Filled], Field(min_length=len(TURNS), max_length=len(TURNS))]


class _Question(TypedDict):
    question_id: QuestionId
    category: Filled
    turns: Turns


class _Choice(TypedDict):
    turns: Turns


class _Answer(TypedDict):
    question_id: QuestionId
    choices: Annotated[list[_Choice], Field(min_length=1)]


class JudgePrompt(TypedDict):
    system_prompt: Text
    prompt_template: Text


Prompts = dict[str, JudgePrompt]
_QUESTION, _ANSWER, _PROMPT = TypeAdapter(_Question), TypeAdapter(_Answer), TypeAdapter(JudgePrompt)


def categories_of(file: Path, first: int | None = None) -> dict[int, str]:
    """Reads question -> category, of the `first` of each category; None: of all. Raises like `read_questions`."""
    return {row["question_id"]: row["category"] for row in first_of_each(read_questions(file), first)}


def read_questions(file: Path) -> list[Row]:
    """Reads QUESTIONS rows in the order of the file, without references. Raises UserError that names a wrong row."""
    rows, places = list[Row](), dict[str, str]()
    for place, row in read_columns(Source(path=str(file)), tuple(_Question.__annotations__)):
        question = checked(_QUESTION, row, place)
        for what, value in (("question_id", question["question_id"]), ("first turn", question["turns"][0])):
            if (before := places.setdefault(f"{what} {value}", place)) != place:
                raise UserError(f"{place}: the same {what} as {before}; delete one of them")
        rows.append({**question, "reference": None})
    return rows


def first_of_each(rows: list[Row], count: int | None) -> list[Row]:
    """Keeps the first of each category, in the order of the file; None: all."""
    seen, kept = Counter[str](), list[Row]()
    for row in rows:
        seen[row["category"]] += 1
        if count is None or seen[row["category"]] <= count:
            kept.append(row)
    return kept


def read_references(file: Path) -> dict[int, list[str]]:
    """Reads question -> answers to both turns: of FastChat's model answers, the first of the `choices`."""
    answers = dict[int, list[str]]()
    for place, row in read_columns(Source(path=str(file)), tuple(_Answer.__annotations__)):
        answer = checked(_ANSWER, row, place)
        if answer["question_id"] in answers:
            raise UserError(f"{place}: question {answer['question_id']} has an answer already; delete one of them")
        answers[answer["question_id"]] = answer["choices"][0]["turns"]
    return answers


def read_prompts(file: Path) -> Prompts:
    """Reads the judge prompts that are used. Raises UserError for one that is not there or cannot be filled in."""
    prompts: Prompts = {}
    columns = ("name", "output_format", *JudgePrompt.__annotations__)
    for place, row in read_columns(Source(path=str(file)), columns):
        name = row.get("name")
        if not isinstance(name, str) or name not in SHOWN:
            continue
        prompt = checked(_PROMPT, row, f"{place}: {name}")
        if name in prompts or row.get("output_format") != RATING:
            raise UserError(f"{place}: {name} must be there once, with the output_format {RATING}")
        try:
            text = prompt["prompt_template"].format(**{part: f"<{part}>" for part in SHOWN[name]})
            if lacking := [part for part in SHOWN[name] if f"<{part}>" not in text]:
                raise ValueError(f"no {{{lacking[0]}}} in it")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise UserError(
                f"{place}: prompt_template of {name} cannot be filled in ({error!r}); mend it, double its braces"
            ) from None
        prompts[name] = prompt
    if missing := [name for name in SHOWN if name not in prompts]:
        raise UserError(f"{file}: no prompt {', '.join(missing)}; take FastChat's judge_prompts.jsonl")
    return prompts


class Asked(NamedTuple):
    """What the judge is told."""

    prompt: str
    """Name of the prompt."""
    system_prompt: str
    user_prompt: str


def asked(prompts: Prompts, question: Row, answers: list[str], turn: int) -> Asked:
    """Fills in the prompt for turn 1 or 2 of a QUESTIONS row; the judge of turn 2 sees both answers."""
    name = "single-math-v1" if question["category"] in REFERENCED else "single-v1"
    turns, texts = question["turns"], {"question": question["turns"][0], "answer": answers[0]}
    if turn == 2:
        name = f"{name}-multi-turn"
        texts = {"question_1": turns[0], "question_2": turns[1], "answer_1": answers[0], "answer_2": answers[1]}
    for number, reference in enumerate(question["reference"] or [], 1):
        texts[f"ref_answer_{number}"] = reference
    return Asked(name, prompts[name]["system_prompt"], prompts[name]["prompt_template"].format(**texts))
