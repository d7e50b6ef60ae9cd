"""A policy's answers to both turns in FastChat's format, and what a judge is asked on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from src.evaluation.mt_bench.judge_prompts import asked, read_prompts
from src.evaluation.mt_bench.rows import QUESTIONS, REQUESTS, TURNS, answers_of, refuse_missing
from src.kernel.cells import cell_key
from src.kernel.config import Free, Label, config
from src.kernel.rows import Row, read_rows, write_metrics, write_rows

MODEL_ANSWERS = "model_answer"
"""Folder; `<model>.jsonl` in it is what FastChat calls model answers."""


@config
class Answers:
    """In: questions, then answers to first turns and as many to second turns.

    Out: `model_answer/<model>.jsonl`, REQUESTS rows (two a question, in the order of the questions), and
    `metrics.json`.
    """

    kind: ClassVar[str] = "mt_bench_answers"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    model: Label
    """The policy's name in the files."""
    key: Free[str]
    """Of the benchmark in the config, for messages."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        questions, *responses = inputs
        rows, half = read_rows(questions, QUESTIONS), len(responses) // len(TURNS)
        given = [_together(responses[:half]), _together(responses[half:])]
        for turn, answers in zip(TURNS, given, strict=True):
            refuse_missing(self.key, (row["question_id"] for row in rows), answers, turn)
        said = {row["question_id"]: [answers[row["question_id"]]["text"] for answers in given] for row in rows}
        (out / MODEL_ANSWERS).mkdir()
        lines = (json.dumps(self._model_answer(question, turns)) + "\n" for question, turns in said.items())
        (out / MODEL_ANSWERS / f"{self.model}.jsonl").write_text("".join(lines))
        write_rows(out, self._requests(questions, rows, said), REQUESTS)
        numbers = _numbers([answer for answers in given for answer in answers.values()])
        write_metrics(out, numbers)

    def _model_answer(self, question: int, turns: list[str]) -> Row:
        """FastChat's ids are drawn and its times the clock's; these are the same whenever it is made."""
        return {
            "question_id": question,
            "answer_id": cell_key(self.model, str(question), *turns),
            "model_id": self.model,
            "choices": [{"index": 0, "turns": turns}],
            "tstamp": 0,
        }

    def _requests(self, questions: Path, rows: list[Row], said: dict[int, list[str]]) -> Iterator[Row]:
        prompts = read_prompts(questions)
        for row in rows:
            for turn in TURNS:
                own = {"question_id": row["question_id"], "turn": turn, "model": self.model}
                yield own | asked(prompts, row, said[row["question_id"]], turn)._asdict()


def _together(responses: list[Path]) -> dict[int, Row]:
    return {question: answer for path in responses for question, answer in answers_of(path).items()}


def _numbers(answers: list[Row]) -> dict[str, float]:
    """empty and cut_off are shares, characters a mean."""
    return {
        "answers": len(answers),
        "empty": sum(not answer["text"] for answer in answers) / len(answers),
        "cut_off": sum(answer["finish_reason"] == "length" for answer in answers) / len(answers),
        "characters": sum(len(answer["text"]) for answer in answers) / len(answers),
    }
