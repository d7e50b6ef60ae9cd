"""Averages of judgments, of our own and of files in FastChat's format, taken as FastChat's `show_result` takes them.

The mean over all rated judgments (that of both turns, not the mean of two means), -1 left out. FastChat also counts
a doubled row twice, so a file of somebody else's is averaged like that unless told otherwise, and doubled rows are
counted in the metrics; in our own they are an error.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal, NamedTuple

import pyarrow as pa

from src.data.source import Source, read_columns
from src.evaluation.mt_bench.question_files import published_categories
from src.evaluation.mt_bench.rows import HIGHEST, MODEL_JUDGMENTS, QUESTIONS, TURNS, UNRATED
from src.kernel.config import Confidence, UserError, config
from src.kernel.rows import Row, read_rows, write_metrics, write_rows

COLUMNS = ("question_id", "model", "judge", "score", "turn")
SHOWN = 10
"""Judgments named in a message, at most."""
Doubled = Literal["count", "refuse"]
"""Several judgments of one answer: each counts, as in FastChat, or they are an error."""

SCORES = pa.schema(
    {
        "item_id": pa.string(),  # `<question_id>/<turn>`
        "score": pa.float64(),  # 0 to 10; the mean where several judgments count
        "cluster": pa.string(),  # the question: its two turns hang together
        "category": pa.string(),
        "turn": pa.int64(),
    }
)


class Judgment(NamedTuple):
    place: str
    """In its file, for messages."""
    question: int
    turn: int
    model: str
    judge: str
    score: float
    """UNRATED where there is none."""


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
    """Of the intervals, such as 0.95."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        judgments, questions = inputs
        (file,) = (judgments / MODEL_JUDGMENTS).iterdir()
        categories = {row["question_id"]: row["category"] for row in read_rows(questions, QUESTIONS)}
        scores = score_file(file, categories=categories, doubled="refuse", confidence=self.confidence)
        write_rows(out, scores.rows, SCORES)
        write_metrics(out, scores.metrics)


def judged_in(path: Path) -> list[tuple[str, str]]:
    """Model and judge of each judgment of a file, once, in its order. Raises UserError for what is no such file."""
    return list(dict.fromkeys((judgment.model, judgment.judge) for judgment in _judgments(path)))


def score_file(
    path: Path,
    model: str | None = None,
    judge: str | None = None,
    *,
    categories: Mapping[int, str] | None = None,
    doubled: Doubled = "count",
    confidence: float = 0.95,
) -> Scores:
    """Of the judgments of one `model` by one `judge`, who need not be named where there is one only.

    `categories`: question -> category, of all that must be there; None: the published 80. Raises UserError that names
    the row, question, model or judge at fault.
    """
    categories = published_categories() if categories is None else categories
    found = _one("model", path, list(_judgments(path)), model)
    found = _one("judge", path, found, judge)
    _check_questions(path, found, categories)
    answers: dict[tuple[int, int], list[Judgment]] = {(q, turn): [] for q in categories for turn in TURNS}
    for judgment in found:
        answers[judgment.question, judgment.turn].append(judgment)
    several = [kept for kept in answers.values() if len(kept) > 1]
    if several and doubled == "refuse":
        one, other = several[0][:2]
        raise UserError(f"{other.place}: question {one.question}, turn {one.turn} was judged at {one.place} already")
    kept = [judgment for several in answers.values() for judgment in several]
    rated = [judgment for judgment in kept if judgment.score != UNRATED]
    if not rated:
        raise UserError(f"{path}: no judgment holds a rating (all scores are {UNRATED}); judge the answers again")
    rows = list(_rows(answers, categories))
    counts = {
        "items": len(rows),
        "questions": len(categories),
        "unrated": len(kept) - len(rated),
        "doubled": sum(len(kept) - 1 for kept in several),
    }
    return Scores(_averages(rated, categories, confidence) | counts, rows)


def _judgments(path: Path) -> Iterable[Judgment]:
    for place, row in read_columns(Source(path=str(path)), COLUMNS):
        missing = next((name for name in COLUMNS if name not in row), None)
        if missing:
            raise UserError(f"{place}: no {missing}; judgments of single answers have {', '.join(COLUMNS)}")
        for name, (is_right, wanted) in RIGHT.items():
            if not is_right(row[name]):
                raise UserError(
                    f"{place}: {name}: {json.dumps(row[name], default=repr)[:80]} is not {wanted}; mend the row"
                )
        question, model, judge, score, turn = (row[name] for name in COLUMNS)
        yield Judgment(place, question, int(turn), model, judge[0], float(score))


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # of a whole number of hundreds of digits
        return False


Test = Callable[[Any], bool]
RIGHT: dict[str, tuple[Test, str]] = {
    "question_id": (lambda value: _is_number(value) and isinstance(value, int), "a whole number"),
    "model": (lambda value: isinstance(value, str), "a name"),
    "judge": (
        lambda value: isinstance(value, list) and bool(value) and isinstance(value[0], str),
        "[judge, name of its prompt]",
    ),
    "score": (
        lambda value: _is_number(value) and (value == UNRATED or 0 <= value <= HIGHEST),
        f"a number from 0 to {HIGHEST}, or {UNRATED} for none",
    ),
    "turn": (lambda value: _is_number(value) and value in TURNS, "1 or 2"),
}
"""What is right in each of the COLUMNS, and how it is called."""


def _one(what: Literal["model", "judge"], path: Path, found: list[Judgment], named: str | None) -> list[Judgment]:
    """Those of the one that is named, or of the only one. Raises UserError with the names where there is no such."""
    names = sorted({getattr(judgment, what) for judgment in found})
    if named is None and len(names) > 1:
        raise UserError(f"{path}: judgments of {len(names)} {what}s, {', '.join(names)}; choose one")
    if named is not None and named not in names:
        raise UserError(f"{path}: no judgment of the {what} {named}; there are {', '.join(names)}")
    return [judgment for judgment in found if getattr(judgment, what) == (named or names[0])]


def _check_questions(path: Path, found: list[Judgment], categories: Mapping[int, str]) -> None:
    strange = next((judgment for judgment in found if judgment.question not in categories), None)
    if strange:
        raise UserError(
            f"{strange.place}: question {strange.question} is none of the {len(categories)}; delete the row"
        )
    there = {(judgment.question, judgment.turn) for judgment in found}
    lacking = [f"{q} (turn {turn})" for q in categories for turn in TURNS if (q, turn) not in there]
    if lacking:
        more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        raise UserError(f"{path}: no judgment of question {', '.join(lacking[:SHOWN])}{more}; judge them too")


def _rows(answers: Mapping[tuple[int, int], list[Judgment]], categories: Mapping[int, str]) -> Iterable[Row]:
    for (question, turn), judgments in answers.items():
        rated = [judgment.score for judgment in judgments if judgment.score != UNRATED]
        if rated:
            own = {"item_id": f"{question}/{turn}", "score": fmean(rated), "cluster": str(question)}
            yield own | {"category": categories[question], "turn": turn}


def _averages(rated: list[Judgment], categories: Mapping[int, str], confidence: float) -> dict[str, float]:
    """Of what was not rated at all there is no key."""
    groups: dict[str, list[Judgment]] = {"score": rated}
    for turn in TURNS:
        groups[f"turn_{turn}"] = [one for one in rated if one.turn == turn]
    for category in dict.fromkeys(categories.values()):
        groups[category] = [one for one in rated if categories[one.question] == category]
    found: dict[str, float] = {}
    for name, group in groups.items():
        found |= {name: fmean(one.score for one in group)} | _interval(name, group, confidence) if group else {}
    for category in dict.fromkeys(categories.values()):
        for turn in TURNS:
            both = [one.score for one in groups[category] if one.turn == turn]
            found |= {f"{category}_turn_{turn}": fmean(both)} if both else {}
    return found


def _interval(name: str, group: list[Judgment], confidence: float) -> dict[str, float]:
    """Student-t over the questions, whose judgments hang together; nothing for one question. Within 0 to HIGHEST.

    The mean is a ratio of sums over questions, Σ scores / Σ judgments: its error is that of the sums of residuals.
    """
    from scipy import stats

    mean, residuals = fmean(one.score for one in group), defaultdict[int, float](float)
    for one in group:
        residuals[one.question] += one.score - mean
    count = len(residuals)
    if count < 2:
        return {}
    error = math.sqrt(count / (count - 1) * math.fsum(r * r for r in residuals.values())) / len(group)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * error
    return {f"{name}_low": max(0.0, mean - half), f"{name}_high": min(float(HIGHEST), mean + half)}
