"""Averages of judgments, of our own and of files in FastChat's format, taken as FastChat's `show_result` takes them.

The mean over all rated judgments (that of both turns, not the mean of two means), -1 left out. Several judgments of one
answer all count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from src.data.source import Source, read_columns
from src.evaluation.foreign_rows import Text, checked
from src.evaluation.mt_bench.files import HIGHEST, MODEL_JUDGMENTS, QUESTIONS, TURNS, UNRATED
from src.evaluation.statistics import ratio_interval
from src.kernel.config import Confidence, UserError, config
from src.kernel.rows import Row, read_rows, write_metrics, write_rows

SHOWN = 10
"""Judgments named in a message, at most."""
SCORES = pa.schema(
    {
        "item_id": pa.string(),  # `<question_id>/<turn>`
        "score": pa.float64(),  # 0 to 10; the mean where several judgments count
        "cluster": pa.string(),  # the question: its two turns hang together
        "category": pa.string(),
        "turn": pa.int64(),
    }
)


def _score(value: float) -> float:
    if value != UNRATED and not 0 <= value <= HIGHEST:
        raise ValueError(f"must be from 0 to {HIGHEST}, or {UNRATED} for none")
    return value


class Judgment(TypedDict):
    question_id: int
    model: Text
    judge: Annotated[list[Text], Field(min_length=1)]
    """Its name, and that of its prompt."""
    score: Annotated[float, AfterValidator(_score)]
    """UNRATED where there is none."""
    turn: Literal[1, 2]


JUDGMENT = TypeAdapter(Judgment)


class Scores(NamedTuple):
    metrics: dict[str, float]
    """score, turn_1, turn_2, a key a category, each with _low and _high; `<category>_turn_1` and _2; counts."""
    rows: list[Row]
    """SCORES rows, one a rated answer, in the order of the questions."""


@config
class Score:
    """In: judgments, questions. Out: SCORES rows and `metrics.json`."""

    kind: ClassVar[str] = "mt_bench_scores"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    confidence: Confidence
    """Level of the intervals, such as 0.95."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        folder, questions = inputs
        ((_, judgments),) = read_judgments((folder / MODEL_JUDGMENTS).iterdir()).items()
        categories = {row["question_id"]: row["category"] for row in read_rows(questions, QUESTIONS)}
        scores = averages(str(folder), judgments, categories, self.confidence)
        write_rows(out, scores.rows, SCORES)
        write_metrics(out, scores.metrics)


def read_judgments(files: Iterable[Path]) -> dict[tuple[str, str], list[Judgment]]:
    """Reads (model, judge) -> judgments. Raises UserError that names a row at fault."""
    by_pair = defaultdict[tuple[str, str], list[Judgment]](list)
    for file in files:
        for place, row in read_columns(Source(path=str(file)), tuple(Judgment.__annotations__)):
            judgment = checked(JUDGMENT, row, place)
            by_pair[judgment["model"], judgment["judge"][0]].append(judgment)
    return by_pair


def averages(
    place: str, judgments: Sequence[Judgment], categories: Mapping[int, str], confidence: float = 0.95
) -> Scores:
    """Averages judgments of one model by one judge. `categories`: question -> category, of all that must be there.

    Raises UserError that begins with `place` and names the question at fault.
    """
    answers: dict[tuple[int, int], list[float]] = {(question, turn): [] for question in categories for turn in TURNS}
    for one in judgments:
        if one["question_id"] not in categories:
            raise UserError(f"{place}: question {one['question_id']} is none of the {len(categories)}; delete the row")
        answers[one["question_id"], one["turn"]].append(one["score"])
    if lacking := [f"{question} (turn {turn})" for (question, turn), kept in answers.items() if not kept]:
        more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        raise UserError(f"{place}: no judgment of question {', '.join(lacking[:SHOWN])}{more}; judge them too")
    rated = {answer: [score for score in kept if score != UNRATED] for answer, kept in answers.items()}
    if not any(rated.values()):
        raise UserError(f"{place}: no judgment holds a rating (all scores are {UNRATED}); judge the answers again")
    rows = [
        {
            "item_id": f"{question}/{turn}",
            "score": fmean(scores),
            "cluster": str(question),
            "category": categories[question],
            "turn": turn,
        }
        for (question, turn), scores in rated.items()
        if scores
    ]
    names = list(dict.fromkeys(categories.values()))
    groups = {"score": rated}
    groups |= {f"turn_{turn}": {key: kept for key, kept in rated.items() if key[1] == turn} for turn in TURNS}
    groups |= {name: {key: kept for key, kept in rated.items() if categories[key[0]] == name} for name in names}
    metrics: dict[str, float] = {}
    for name, group in groups.items():
        metrics |= _mean(name, group, confidence)
    for name in names:
        for turn in TURNS:
            scores = [score for key, kept in groups[name].items() if key[1] == turn for score in kept]
            metrics |= {f"{name}_turn_{turn}": fmean(scores)} if scores else {}
    metrics |= {
        "items": len(rows),
        "questions": len(categories),
        "unrated": sum(kept.count(UNRATED) for kept in answers.values()),
        "doubled": sum(len(kept) - 1 for kept in answers.values()),
    }
    return Scores(metrics, rows)


def _mean(name: str, group: Mapping[tuple[int, int], list[float]], confidence: float) -> dict[str, float]:
    """Takes the mean, with its interval over questions within 0 to HIGHEST; no key for what was not rated at all."""
    by_question = defaultdict[int, list[float]](list)
    for (question, _), scores in group.items():
        by_question[question] += scores
    kept = [scores for scores in by_question.values() if scores]
    if not kept:
        return {}
    mean = {name: fmean(score for scores in kept for score in scores)}
    if len(kept) < 2:
        return mean
    low, high = ratio_interval(np.array([sum(scores) for scores in kept]), np.array([*map(len, kept)]), confidence)
    return mean | {f"{name}_low": max(0.0, low), f"{name}_high": min(float(HIGHEST), high)}
