"""benchmark=ifeval: verifiable instructions (arXiv:2311.07911), answered greedily and checked by lm-eval's checker."""

from __future__ import annotations

import json
import logging
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, NonNegativeFloat, PositiveInt
from typing_extensions import TypedDict

from src.data.prompts import Columns, same_text
from src.data.source import READERS, Source
from src.evaluation.answers import best_answers, only_answers
from src.evaluation.benchmark import SCORES, SEED, Measure, Planner, Policies, Scored, chosen, read_table, version_of
from src.evaluation.statistics import bootstrap_interval, wilson_interval
from src.generation.engine import Sampling
from src.kernel.artifact import Node, Stage
from src.kernel.config import Confidence, Free, UserError, config
from src.kernel.rows import PROMPTS, Row, read_rows, schema, write_metrics, write_rows

PUBLISHED_PROMPTS = 541
INSTRUCTIONS = "instructions.jsonl"
"""The file beside the prompts: one line per row with key, prompt, instruction_id_list and kwargs."""
RESAMPLES = 10_000
PUNKT = "tokenizers/punkt_tab/english"
CARRIER, CARRIED = "llama-index-core", "llama_index/core/_static/nltk_cache"
"""An installed package with the files by which nltk splits sentences, and their folder; none of its code is run."""

ITEMS = schema(
    item_id=pa.string(),  # the key of the official file
    score=pa.float64(),  # 1: every instruction is followed, by the strict reading
    loose=pa.float64(),  # the same by the loose one
    prompt_id=pa.string(),
    instructions=pa.list_(pa.string()),
    followed=pa.list_(pa.bool_()),  # one per instruction, strict
    followed_loose=pa.list_(pa.bool_()),
    finish_reason=pa.string(),
    tokens=pa.int64(),  # of the answer
)


class Question(TypedDict):
    """A row of the official file."""

    key: int | str
    prompt: Annotated[str, Field(min_length=1)]
    instruction_id_list: Annotated[list[str], Field(min_length=1)]
    kwargs: list[dict[str, Any]]
    """Arguments of each instruction; those that it does not have are null on the hub."""


class _Response(TypedDict):
    prompt: str
    response: str


@config
class IFEval:
    title: ClassVar[str] = "IFEval"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("prompt_level_strict", "prompt strict"),
        Measure("instruction_level_strict", "instruction strict"),
        Measure("prompt_level_loose", "prompt loose"),
        Measure("instruction_level_loose", "instruction loose"),
        Measure("leaderboard_ifeval", "IFEval"),
        Measure("tokens", "tokens", 0),
    )

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
    max_new_tokens: PositiveInt
    max_prompt_tokens: PositiveInt
    """A longer prompt is an error."""

    def _source(self) -> Source:
        is_file = Path(self.path).is_file() or Path(self.path).suffix in READERS
        split = None if is_file else "train"  # the only split on the hub
        return Source(path=self.path, split=split, revision=self.revision, rows=PUBLISHED_PROMPTS)

    def nodes(self, name: str, run: Planner, policies: Policies) -> Iterator[Node]:
        source = self._source()
        count = min(self.first or PUBLISHED_PROMPTS, source.count() or PUBLISHED_PROMPTS)
        stage = IFEvalQuestions(source=source, content=source.content(), first=self.first)
        questions = run.node(f"{name}/questions", stage, rows=count)
        key = f"benchmark.{name}"
        tokens = {"max_new_tokens": self.max_new_tokens, "max_prompt_tokens": self.max_prompt_tokens}
        sampling = Sampling(K=1, temperature=self.temperature, top_p=1, **tokens)
        # Greedy answers draw nothing, so runs of all seeds share them.
        generate = run.generate(sampling, run.seed_of(SEED) if self.temperature else 0, key)
        scores = IFEvalScores(confidence=run.held_out.confidence, key=key)
        for policy, entry in chosen(policies, self.of, f"{key}.of").items():
            inputs = (questions, entry.policy)
            answers = best_answers(f"{policy}/{name}/answers", run, generate, inputs, "ifeval_answers")
            yield run.node(f"{policy}/{name}/{SCORES}", scores, (questions, answers), rows=count, job="evaluation")

    def score_files(self, name: str, paths: Sequence[Path], confidence: float) -> list[Scored]:
        """Check files of responses in the official format, a row a prompt: prompt, response."""
        rows, scored = islice(read_table(Question, self._source()), self.first), []
        questions = [checkable(place, question) for place, question in rows]
        for path in paths:
            responses = [(row["prompt"], row["response"]) for _, row in read_table(_Response, Source(path=str(path)))]
            texts = dict(responses)
            if len(responses) > len(texts):
                raise UserError(f"{path}: {len(responses)} responses to {len(texts)} prompts; give each one")
            if missing := [one["prompt"] for one in questions if one["prompt"] not in texts]:
                line = f"no response to {len(missing)} of {len(questions)} prompts, the first {missing[0]!r:.80}"
                own, *others = (same_text([{"role": "user", "content": text}]) for text in (missing[0], *texts))
                remedy = "its own has other white space, case or Unicode form" if own in others else ""
                raise UserError(f"{path}: {line}; {remedy or f'benchmark.{name}.first takes fewer'}")
            numbers = metrics([verdict_row(one, texts[one["prompt"]]) for one in questions], confidence)
            scored.append(Scored(str(path), dict[str, float | None](numbers)))
        return scored


@config
class IFEvalQuestions(Stage):
    """Reads the first questions of a file or data set. Out: PROMPTS rows, and `instructions.jsonl`."""

    kind: ClassVar[str] = "ifeval_questions"

    source: Source
    content: str
    """Content of the source when the run was planned: the key follows what it says, not where it lies."""
    first: PositiveInt | None
    """The first so many; null: all."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        if self.source.content() != self.content:
            raise UserError(f"{self.source.path}: changed since the run was started; start it again")
        questions, rows = list[Question](), list[Row]()
        for place, question in islice(read_table(Question, self.source), self.first):
            questions.append(checkable(place, question))
            rows.append(Columns(prompt="prompt").prompt_row((place, {"prompt": question["prompt"]}), self.source.label))
        write_rows(out, rows, PROMPTS)
        lines = (json.dumps(question, ensure_ascii=False) + "\n" for question in questions)
        (out / INSTRUCTIONS).write_text("".join(lines), encoding="utf-8")
        instructions = sum(len(question["instruction_id_list"]) for question in questions)
        write_metrics(out, {"rows": len(rows), "instructions": instructions})


def checkable(place: str, question: Question) -> Question:
    """Return the question without the nulls of its kwargs. Raises UserError where the checker does not take it."""
    kwargs = [{name: value for name, value in one.items() if value is not None} for one in question["kwargs"]]
    question = Question(**question | {"key": str(question["key"]), "kwargs": kwargs})  # pyright: ignore
    try:
        judge(question, "An answer.")
    except Exception as error:  # the checker raises errors of many kinds
        raise UserError(f"{place}: cannot be checked with these kwargs ({error!r}); correct or delete it") from None
    return question


def read_questions(folder: Path) -> list[tuple[str, Question]]:
    """Return (prompt_id, question) of an artifact, in their order."""
    rows = read_rows(folder, PROMPTS)
    lines = (folder / INSTRUCTIONS).read_bytes().splitlines()
    return [(row["prompt_id"], json.loads(line)) for row, line in zip(rows, lines, strict=True)]


@config
class IFEvalScores(Stage):
    """Says which instructions each answer follows.

    In: questions, answers. Out: one row per prompt, and `metrics.json` in percent: prompt_level (all instructions of a
    prompt) and instruction_level, strict and loose; leaderboard_ifeval, the mean of the two strict ones, as the Open
    LLM Leaderboard v2 shows; finished (share) and tokens (mean).
    """

    kind: ClassVar[str] = "ifeval_scores"
    version: ClassVar[int] = 2

    confidence: Confidence
    """Level of the intervals, such as 0.95."""
    key: Free[str]
    """Config key of the benchmark, for messages."""

    def source_version(self) -> str:
        return ", ".join(map(version_of, ("lm-eval", "nltk", "langdetect"))) + f", punkt_tab of {version_of(CARRIER)}"

    def __call__(self, *inputs: Path, out: Path) -> None:
        questions = read_questions(inputs[0])
        answers = only_answers(inputs[1:], [prompt for prompt, _ in questions], self.key)
        rows = []
        for (prompt, question), answer in zip(questions, answers, strict=True):
            of_answer = {"finish_reason": answer["finish_reason"], "tokens": len(answer["token_ids"])}
            rows.append(verdict_row(question, answer["text"]) | {"prompt_id": prompt} | of_answer)
        finished = sum(row["finish_reason"] == "stop" for row in rows) / len(rows)
        write_rows(out, rows, ITEMS)
        tokens = sum(row["tokens"] for row in rows) / len(rows)
        write_metrics(out, metrics(rows, self.confidence) | {"finished": finished, "tokens": tokens})


def verdict_row(question: Question, answer: str) -> Row:
    """Return the columns of ITEMS that the text of an answer decides."""
    strict, loose = judge(question, answer)
    row = {"item_id": question["key"], "score": float(all(strict)), "loose": float(all(loose)), "followed": strict}
    return row | {"instructions": question["instruction_id_list"], "followed_loose": loose}


def metrics(rows: list[Row], confidence: float) -> dict[str, float]:
    """Compute the numbers of ITEMS rows, at least one: percentages but for items and instructions.

    Intervals of instructions draw whole prompts: instructions of one prompt are followed or missed together.
    """
    count, asked = len(rows), np.array([len(row["instructions"]) for row in rows])
    whole, whole_loose, followed, followed_loose = (
        np.array([np.sum(row[name]) for row in rows], float)
        for name in ("score", "loose", "followed", "followed_loose")
    )

    def share(followed: np.ndarray, asked: np.ndarray, axis: int) -> np.ndarray:
        return followed.sum(axis) / asked.sum(axis)

    def both(whole: np.ndarray, followed: np.ndarray, asked: np.ndarray, axis: int) -> np.ndarray:
        return (whole.mean(axis) + share(followed, asked, axis)) / 2

    numbers: dict[str, float] = {"items": count, "instructions": int(asked.sum())}
    for key, column in (("prompt_level_strict", whole), ("prompt_level_loose", whole_loose)):
        low, high = wilson_interval(int(column.sum()), count, confidence)
        numbers |= {key: 100 * float(column.mean()), f"{key}_low": 100 * low, f"{key}_high": 100 * high}
    for key, columns, statistic in (
        ("instruction_level_strict", (followed, asked), share),
        ("instruction_level_loose", (followed_loose, asked), share),
        ("leaderboard_ifeval", (whole, followed, asked), both),
    ):
        low, high = bootstrap_interval(columns, statistic, confidence, RESAMPLES, seed=0)
        value = 100 * float(statistic(*columns, axis=-1))
        numbers |= {key: value, f"{key}_low": 100 * low, f"{key}_high": 100 * high}
    return numbers


# lm-eval's checker --------------------------------------------------------------------------------------------------


def judge(question: Question, answer: str) -> tuple[list[bool], list[bool]]:
    """Return which instructions the answer follows, strictly and loosely; the same every time.

    Loosely is by the best of eight readings: without asterisks, without its first line, its last, or both.
    """
    from langdetect import DetectorFactory

    checker, verdicts = _checker(), []
    state, seed = random.getstate(), DetectorFactory.seed
    try:
        for check in (checker.test_instruction_following_strict, checker.test_instruction_following_loose):
            random.seed(0)  # for each, so that both ask for the same where a question leaves something open
            DetectorFactory.seed = 0  # unset, it may judge one answer twice in two ways
            verdicts.append(check(checker.InputExample(**question), answer).follow_instruction_list)
    finally:  # everybody else draws on as if nothing had been drawn here
        random.setstate(state)
        DetectorFactory.seed = seed
    return verdicts[0], verdicts[1]


def copy_punkt(folder: Path) -> None:
    """Make `folder` one in which nltk finds where English sentences end.

    A copy, since nltk refuses files that have several names (uv links them so) or that others may write.
    """
    version_of(CARRIER)  # Raises UserError where it is not there
    (place := folder / PUNKT).mkdir(parents=True, exist_ok=True)
    for file in Path(str(metadata.distribution(CARRIER).locate_file(CARRIED)), PUNKT).iterdir():
        shutil.copyfile(file, place / file.name)
        (place / file.name).chmod(0o600)


@cache
def _checker() -> Any:
    """Import lm-eval's module; its import looks for punkt_tab, and would download it."""
    import nltk

    with tempfile.TemporaryDirectory() as name:
        copy_punkt(folder := Path(name).resolve())
        nltk.data.path.insert(0, str(folder))
        from lm_eval.tasks.ifeval import instructions_util, utils

        instructions_util.count_sentences("One. Two.")  # both keep what they read
        nltk.word_tokenize("One. Two.")
        nltk.data.path.remove(str(folder))
    logging.getLogger("lm_eval.tasks.ifeval.instructions").setLevel(logging.CRITICAL)  # repeats whole answers
    return utils
