"""Scores of IFEval: which instructions each answer follows, by lm-eval's checker.

In: questions, answers. Out: a row a prompt, and `metrics.json` in percent: prompt_level (all instructions of a prompt)
and instruction_level, each strict and loose, with intervals; leaderboard_ifeval, the mean of the two strict ones, as
the Open LLM Leaderboard v2 shows; official_items: all where the questions are the 541 published ones, else 0;
strict/<group> of the instructions of a group; finished (share) and tokens (mean).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from src.evaluation.ifeval.checker import Question, judge, versions
from src.evaluation.ifeval.instructions import read_questions
from src.kernel.config import Confidence, Free, UserError, config
from src.kernel.rows import RESPONSES, Row, read_rows, write_metrics, write_rows

RESAMPLES = 10_000
OFFICIAL = "79606fa39836b4e0"
"""`digest` of the 541 prompts as published."""
SEED = 0
"""Of the bootstrap."""

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


@config
class IFEvalScores:
    kind: ClassVar[str] = "ifeval_scores"
    version: ClassVar[int] = 2
    resumable: ClassVar[bool] = False

    confidence: Confidence
    """Of the intervals, such as 0.95."""
    key: Free[str]
    """Of the benchmark in the config, for messages."""

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
    """Hash of keys, prompts and instructions, in whichever order."""
    told = sorted([one["key"], one["prompt"], one["instruction_id_list"]] for one in questions)
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def metrics(rows: list[Row], confidence: float) -> dict[str, float]:
    """Of SCORES rows, at least one: percentages but for items, instructions, finished and tokens."""
    found: dict[str, float] = {"items": len(rows), "instructions": sum(len(row["instructions"]) for row in rows)}
    for kind, prompt, instruction in (("strict", "score", "followed"), ("loose", "loose", "followed_loose")):
        followed = [sum(row[prompt] for row in rows)]
        found |= _named(
            f"prompt_level_{kind}", 100 * followed[0] / len(rows), _wilson(followed[0], len(rows), confidence)
        )
        share = _share_of_instructions(rows, instruction)
        found |= _named(f"instruction_level_{kind}", *_bootstrapped(share, len(rows), confidence))
    prompts = np.array([row["score"] for row in rows])
    instructions = _share_of_instructions(rows, "followed")

    def both(picked: np.ndarray) -> np.ndarray:
        return (prompts[picked].mean(-1) + instructions(picked)) / 2

    found |= _named("leaderboard_ifeval", *_bootstrapped(both, len(rows), confidence))
    found["finished"] = sum(row["finish_reason"] == "stop" for row in rows) / len(rows)
    found["tokens"] = sum(row["tokens"] for row in rows) / len(rows)
    return found | _groups(rows)


Statistic = Callable[[np.ndarray], np.ndarray]
"""Numbers of rows, in the last dimension, to a share in [0, 1]."""


def _share_of_instructions(rows: list[Row], name: str) -> Statistic:
    """Of the instructions of some rows together: a prompt with three counts for three."""
    kept = np.array([sum(row[name]) for row in rows])
    asked = np.array([len(row[name]) for row in rows])
    return lambda picked: kept[picked].sum(-1) / asked[picked].sum(-1)


def _bootstrapped(share: Statistic, count: int, confidence: float) -> tuple[float, tuple[float, float]]:
    """The share of all rows in percent, and its percentile interval where whole prompts are drawn again.

    Instructions of one prompt are followed or missed together, so they are no independent draws.
    """
    lots = np.random.default_rng(SEED)
    drawn = np.concatenate([share(lots.integers(count, size=(100, count))) for _ in range(RESAMPLES // 100)])
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return 100 * float(share(np.arange(count))), (100 * float(low), 100 * float(high))


def _wilson(followed: float, count: int, confidence: float) -> tuple[float, float]:
    from scipy import stats

    interval = stats.binomtest(round(followed), count).proportion_ci(confidence, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def _named(key: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    return {key: value, f"{key}_low": interval[0], f"{key}_high": interval[1]}


def _groups(rows: list[Row]) -> dict[str, float]:
    """Strict accuracy of the instructions of a group, and how many there are."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        for instruction, followed in zip(row["instructions"], row["followed"], strict=True):
            verdicts[instruction.partition(":")[0]].append(followed)
    shares = {f"strict/{group}": 100 * sum(found) / len(found) for group, found in sorted(verdicts.items())}
    return shares | {f"instructions/{group}": len(found) for group, found in sorted(verdicts.items())}
