"""The second turns as prompts: the question, the policy's own answer to it, and what is asked then."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from src.evaluation.mt_bench.rows import answers_of, of_categories, prompt_row, refuse_missing
from src.kernel.config import Free, config
from src.kernel.rows import PROMPTS, Row, write_rows


@config
class SecondTurns:
    """In: answers to the first turns of some categories, questions. Out: PROMPTS rows.

    An empty first answer, or one that was cut off, is shown as it is, as FastChat does: the judge of the second turn
    sees it too.
    """

    kind: ClassVar[str] = "mt_bench_prompts"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    categories: list[str]
    key: Free[str]
    """Of the benchmark in the config, for messages."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        responses, questions = inputs
        rows, answers = of_categories(questions, self.categories), answers_of(responses)
        refuse_missing(self.key, (row["question_id"] for row in rows), answers, turn=1)
        prompts = [self._prompt(row, answers[row["question_id"]]["text"]) for row in rows]
        write_rows(out, prompts, PROMPTS)

    def _prompt(self, question: Row, answer: str) -> Row:
        first, second = question["turns"]
        return prompt_row(question["question_id"], [first, answer, second])
