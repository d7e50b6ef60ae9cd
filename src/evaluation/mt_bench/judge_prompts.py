"""What the judge is told: FastChat's prompts for grading a single answer, filled in as FastChat does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from src.data.source import Source, read_columns
from src.kernel.config import UserError
from src.kernel.rows import Row

JUDGE_PROMPTS = "judge_prompts.json"
"""In the folder of the questions: name -> its texts."""
REFERENCED = ("math", "reasoning", "coding", "arena-hard-200")
"""Categories in which the judge is shown reference answers."""
TEXTS = ("system_prompt", "prompt_template")
RATING = "[[rating]]"
"""Output format of a prompt that asks for one rating."""
SHOWN = {
    "single-v1": ("question", "answer"),
    "single-math-v1": ("question", "answer", "ref_answer_1"),
    "single-v1-multi-turn": ("question_1", "question_2", "answer_1", "answer_2"),
    "single-math-v1-multi-turn": (
        *("question_1", "question_2", "answer_1", "answer_2"),
        *("ref_answer_1", "ref_answer_2"),
    ),
}
"""The prompts that are used, and what each must show."""

Prompts = dict[str, dict[str, str]]
"""Name -> TEXTS -> text."""


class Asked(NamedTuple):
    """Of the judge."""

    prompt: str
    """Name of the prompt."""
    system_prompt: str
    user_prompt: str


def needs_reference(category: str) -> bool:
    return category in REFERENCED


def prompt_name(category: str, turn: int) -> str:
    """Of turn 1 or 2."""
    return ("single-math-v1" if needs_reference(category) else "single-v1") + ("-multi-turn" if turn == 2 else "")


def asked(prompts: Prompts, question: Row, answers: list[str], turn: int) -> Asked:
    """On turn 1 or 2 of a QUESTIONS row; the judge of turn 2 sees both answers."""
    name, turns = prompt_name(question["category"], turn), question["turns"]
    texts = {"question": turns[0], "answer": answers[0]}
    if turn == 2:
        texts = {"question_1": turns[0], "question_2": turns[1], "answer_1": answers[0], "answer_2": answers[1]}
    for number, reference in enumerate(question["reference"] or [], 1):
        texts[f"ref_answer_{number}"] = reference
    return Asked(name, prompts[name]["system_prompt"], prompts[name]["prompt_template"].format(**texts))


def read_prompts(questions: Path) -> Prompts:
    """Those of a folder of questions."""
    return json.loads((questions / JUDGE_PROMPTS).read_text())


def check_prompts(file: Path) -> Prompts:
    """Those in FastChat's file that are used. Raises UserError for one that is not there or cannot be filled in."""
    found: Prompts = {}
    for place, row in read_columns(Source(path=str(file)), ("name", "output_format", *TEXTS)):
        name = row.get("name")
        if not isinstance(name, str) or name not in SHOWN:
            continue
        if name in found:
            raise UserError(f"{place}: there was a prompt {name} already; delete one of them")
        if not all(isinstance(row.get(text), str) for text in TEXTS) or row.get("output_format") != RATING:
            raise UserError(f"{place}: {name} needs system_prompt, prompt_template and the output_format {RATING}")
        _check_template(place, name, row["prompt_template"])
        found[name] = {text: row[text] for text in TEXTS}
    missing = [name for name in SHOWN if name not in found]
    if missing:
        raise UserError(f"{file}: no prompt {', '.join(missing)}; take FastChat's judge_prompts.jsonl")
    return found


def _check_template(place: str, name: str, template: str) -> None:
    lacking = [f"{{{part}}}" for part in SHOWN[name] if f"{{{part}}}" not in template]
    if lacking:
        raise UserError(f"{place}: prompt_template of {name} lacks {', '.join(lacking)}")
    try:
        template.format(**dict.fromkeys(SHOWN[name], ""))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise UserError(
            f"{place}: prompt_template of {name} cannot be filled in ({error!r}); double its braces"
        ) from None
