"""benchmark=ifeval: verifiable instructions (arXiv:2311.07911), answered greedily and checked by lm-eval's checker."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import NonNegativeFloat, PositiveInt, TypeAdapter

from src.data.prompts import Columns
from src.data.source import READERS, Source, read_columns
from src.evaluation.benchmark import SCORES as SCORES_NAME
from src.evaluation.benchmark import SEED, Measure, Planner, Policies, chosen
from src.evaluation.best_of import Several, best_of
from src.evaluation.foreign_rows import checked
from src.evaluation.ifeval.checker import Question, check_installed, judge, versions
from src.evaluation.statistics import bootstrap_interval, wilson_interval
from src.generation.engine import Sampling
from src.kernel.artifact import Node
from src.kernel.config import Confidence, Free, UserError, config
from src.kernel.rows import PROMPTS, RESPONSES, Row, read_rows, write_metrics, write_rows

PUBLISHED_PROMPTS = 541
"""Published."""
OFFICIAL = "79606fa39836b4e0"
"""`digest` of the 541 prompts as published."""
INSTRUCTIONS = "instructions.jsonl"
"""Beside the prompts: a line a row with key, prompt, instruction_id_list and kwargs."""
RESAMPLES = 10_000

SCORES = pa.schema(
    {
        "item_id": pa.string(),  # the key of the official file
        "score": pa.float64(),  # 1: every instruction is followed, by the strict reading
        "loose": pa.float64(),  # the same by the loose one
        "prompt_id": pa.string(),
        "instructions": pa.list_(pa.string()),
        "followed": pa.list_(pa.bool_()),  # one an instruction, strict
        "followed_loose": pa.list_(pa.bool_()),
        "finish_reason": pa.string(),
        "tokens": pa.int64(),  # of the answer
    }
)


QUESTION = TypeAdapter(Question)


@config
class IFEval:
    published: ClassVar[str] = "ifeval"
    no_matter: ClassVar[tuple[str, ...]] = ("path", "revision", "of", "best_of", "max_prompt_tokens")

    path: str
    """Hub id, or a file in the official format: key, prompt, instruction_id_list, kwargs."""
    revision: str | None
    """Commit, tag or branch of a hub id; null: main."""
    first: PositiveInt | None
    """The first so many prompts; null: all."""
    of: list[str] | None
    """Policies, such as [base, it3]; null: all."""
    temperature: NonNegativeFloat
    """0: greedy, as published."""
    best_of: Several | None
    """Answers a prompt, of which the run's ranker keeps the best; null: one, unranked."""
    max_new_tokens: PositiveInt
    max_prompt_tokens: PositiveInt
    """A longer prompt is an error."""

    def __post_init__(self) -> None:
        if self.best_of and not self.temperature:
            raise ValueError("best_of: at temperature 0 all answers are the same; raise temperature too")

    @property
    def title(self) -> str:
        return "IFEval"

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (
            Measure("prompt_level_strict", "prompt strict"),
            Measure("instruction_level_strict", "instruction strict"),
            Measure("prompt_level_loose", "prompt loose"),
            Measure("instruction_level_loose", "instruction loose"),
            Measure("leaderboard_ifeval", "IFEval"),
            Measure("tokens", "tokens", 0),
        )

    def nodes(self, name: str, run: Planner, policies: Policies) -> Iterator[Node]:
        check_installed()
        is_file = Path(self.path).is_file() or Path(self.path).suffix in READERS
        # The data set on the hub has one split.
        source = Source(
            path=self.path, split=None if is_file else "train", revision=self.revision, rows=PUBLISHED_PROMPTS
        )
        count = min(self.first or PUBLISHED_PROMPTS, source.count() or PUBLISHED_PROMPTS)
        stage = IFEvalQuestions(source=source, content=source.content(), first=self.first)
        questions = run.node(f"{name}/questions", stage, rows=count)
        n, key = self.best_of or 1, f"benchmark.{name}"
        sampling = Sampling(
            K=n,
            temperature=self.temperature,
            top_p=1,
            max_new_tokens=self.max_new_tokens,
            max_prompt_tokens=self.max_prompt_tokens,
        )
        # Greedy answers draw nothing, so runs of all seeds share them.
        generate = replace(run.generate(sampling, run.seed_of(SEED) if self.temperature else 0), key=key)
        scores = IFEvalScores(confidence=run.confidence, key=key)
        size = {"rows": count, "work": count * n, "kind": "ifeval_answers"}
        for policy, entry in chosen(policies, self.of, f"{key}.of").items():
            at = f"{policy}/{name}"
            sampled = run.node(f"{at}/answers", generate, (questions, entry.policy), **size, job="evaluation")
            answers = best_of(at, run, sampled, count, n)
            yield answers
            yield run.node(f"{at}/{SCORES_NAME}", scores, (questions, answers), rows=count, job="evaluation")


@config
class IFEvalQuestions:
    """Reads the questions of a file or data set in the official format, or the first of them.

    Out: PROMPTS rows, and `instructions.jsonl`.
    """

    kind: ClassVar[str] = "ifeval_questions"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    source: Source
    content: str
    """Content of the source when the run was planned: the key follows what it says, not where it lies."""
    first: PositiveInt | None
    """The first so many; null: all."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        if self.source.content() != self.content:
            raise UserError(f"{self.source.path}: changed since the run was started; start it again")
        questions, rows, places = list[Question](), list[Row](), dict[str, str]()
        for place, row in list(read_columns(self.source, tuple(Question.__annotations__)))[: self.first]:
            question = _question(place, row)
            prompt = Columns(prompt="prompt").prompt_row((place, row), self.source.label)
            for what, value in (("key", question["key"]), ("prompt", prompt["prompt_id"])):
                if (first := places.setdefault(f"{what} {value}", place)) != place:
                    raise UserError(f"{place}: the same {what} as {first}; delete one of the rows")
            questions.append(question)
            rows.append(prompt)
        write_rows(out, rows, PROMPTS)
        lines = (json.dumps(question, ensure_ascii=False) + "\n" for question in questions)
        (out / INSTRUCTIONS).write_text("".join(lines), encoding="utf-8")
        instructions = sum(len(question["instruction_id_list"]) for question in questions)
        write_metrics(out, {"rows": len(rows), "instructions": instructions})


def _question(place: str, row: Row) -> Question:
    """Checks a row, and that the checker takes it; drops the nulls of its kwargs."""
    question = checked(QUESTION, row, place)
    ids, values = question["instruction_id_list"], question["kwargs"]
    if len(values) != len(ids):
        raise UserError(f"{place}: kwargs: must be a list of {len(ids)} objects, one an instruction")
    kwargs = [{name: value for name, value in one.items() if value is not None} for one in values]
    question = Question(key=str(question["key"]), prompt=question["prompt"], instruction_id_list=ids, kwargs=kwargs)
    try:
        json.dumps(question, ensure_ascii=False).encode()
        judge(question, "An answer.")
    except UserError:
        raise
    except Exception as error:  # the checker's own, of whatever kind
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise UserError(
            f"{place}: {', '.join(ids)} cannot be checked with these kwargs ({reason}); correct or delete the row"
        ) from None
    return question


def read_questions(folder: Path) -> list[tuple[str, Question]]:
    """Reads (prompt_id, question) of an artifact, in their order."""
    rows = read_rows(folder, PROMPTS)
    lines = (folder / INSTRUCTIONS).read_text(encoding="utf-8").split("\n")[:-1]
    return [(row["prompt_id"], json.loads(line)) for row, line in zip(rows, lines, strict=True)]


@config
class IFEvalScores:
    """Which instructions each answer follows.

    In: questions, answers. Out: a row a prompt, and `metrics.json` in percent: prompt_level (all instructions of a
    prompt) and instruction_level, each strict and loose, with intervals; leaderboard_ifeval, the mean of the two strict
    ones, as the Open LLM Leaderboard v2 shows; official_items: all where the questions are the 541 published ones, else
    0; strict/<group> of the instructions of a group; finished (share) and tokens (mean).
    """

    kind: ClassVar[str] = "ifeval_scores"
    version: ClassVar[int] = 2
    resumable: ClassVar[bool] = False

    confidence: Confidence
    """Level of the intervals, such as 0.95."""
    key: Free[str]
    """Config key of the benchmark, for messages."""

    def source_version(self) -> str:
        return versions()

    def __call__(self, *inputs: Path, out: Path) -> None:
        questions, answers = inputs
        given = {row["prompt_id"]: row for row in read_rows(answers, RESPONSES)}
        rows, asked = [], read_questions(questions)
        for prompt, question in asked:
            if prompt not in given:
                raise UserError(
                    f"{self.key}.max_prompt_tokens: the prompt of key {question['key']} has more, so there is no "
                    "answer to it; raise it"
                )
            (answer,) = given[prompt]["responses"]
            verdict = judge(question, answer["text"])
            rows.append(
                {
                    "item_id": question["key"],
                    "score": float(all(verdict.strict)),
                    "loose": float(all(verdict.loose)),
                    "prompt_id": prompt,
                    "instructions": question["instruction_id_list"],
                    "followed": verdict.strict,
                    "followed_loose": verdict.loose,
                    "finish_reason": answer["finish_reason"],
                    "tokens": len(answer["token_ids"]),
                }
            )
        write_rows(out, rows, SCORES)
        official = len(rows) if digest(question for _, question in asked) == OFFICIAL else 0
        write_metrics(out, metrics(rows, self.confidence) | {"official_items": official})


def digest(questions: Iterable[Question]) -> str:
    """Hashes keys, prompts and instructions, in whichever order."""
    triples = sorted([one["key"], one["prompt"], one["instruction_id_list"]] for one in questions)
    return hashlib.sha256(json.dumps(triples).encode()).hexdigest()[:16]


def metrics(rows: list[Row], confidence: float) -> dict[str, float]:
    """Computes the numbers of SCORES rows, at least one: percentages but for items, instructions, finished, tokens.

    Intervals of instructions draw whole prompts: instructions of one prompt are followed or missed together.
    """
    numbers: dict[str, float] = {"items": len(rows), "instructions": sum(len(row["instructions"]) for row in rows)}
    asked = np.array([len(row["instructions"]) for row in rows])

    def share(kept: np.ndarray, asked: np.ndarray, axis: int) -> np.ndarray:
        return kept.sum(axis) / asked.sum(axis)

    def both(whole: np.ndarray, kept: np.ndarray, asked: np.ndarray, axis: int) -> np.ndarray:
        return (whole.mean(axis) + kept.sum(axis) / asked.sum(axis)) / 2

    def add(key: str, value: float, interval: tuple[float, float]) -> None:
        numbers.update({key: value, f"{key}_low": 100 * interval[0], f"{key}_high": 100 * interval[1]})

    for kind, prompt, instruction in (("strict", "score", "followed"), ("loose", "loose", "followed_loose")):
        whole = sum(row[prompt] for row in rows)
        add(f"prompt_level_{kind}", 100 * whole / len(rows), wilson_interval(round(whole), len(rows), confidence))
        columns = (np.array([sum(row[instruction]) for row in rows]), asked)
        interval = bootstrap_interval(columns, share, confidence, RESAMPLES, seed=0)
        add(f"instruction_level_{kind}", 100 * float(share(*columns, axis=-1)), interval)
    columns = (np.array([row["score"] for row in rows]), np.array([sum(row["followed"]) for row in rows]), asked)
    interval = bootstrap_interval(columns, both, confidence, RESAMPLES, seed=0)
    add("leaderboard_ifeval", 100 * float(both(*columns, axis=-1)), interval)
    numbers["finished"] = sum(row["finish_reason"] == "stop" for row in rows) / len(rows)
    numbers["tokens"] = sum(row["tokens"] for row in rows) / len(rows)
    groups: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        for instruction, followed in zip(row["instructions"], row["followed"], strict=True):
            groups[instruction.partition(":")[0]].append(followed)
    numbers |= {f"strict/{group}": 100 * sum(kept) / len(kept) for group, kept in sorted(groups.items())}
    return numbers | {f"instructions/{group}": len(kept) for group, kept in sorted(groups.items())}
