"""Ratings of the judge, and their averages as FastChat's `show_result` takes them, from FastChat's own files too.

A score is the mean over all rated judgments of both turns, not the mean of two means; -1 is left out. Several judgments
of one answer all count.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NotRequired

import pyarrow as pa
from pydantic import Field
from typing_extensions import TypedDict

from src.data.source import Source
from src.evaluation.benchmark import read_table
from src.evaluation.mt_bench.questions import QUESTIONS, REQUESTS, TURNS, prompt_name
from src.evaluation.statistics import ratio_interval
from src.kernel.artifact import WORK, Stage
from src.kernel.cells import CELLS, cell_key
from src.kernel.config import Confidence, Free, Share, UserError, config
from src.kernel.rows import Row, read_rows, schema, write_metrics, write_rows
from src.modeling.asking import ask_all
from src.modeling.endpoint import BenchmarkJudge, Endpoint

HIGHEST = 10
UNRATED = -1
"""The score, in FastChat's files, of a reply without a rating."""
MODEL_JUDGMENTS = "model_judgment"
"""A folder; `<judge>_single.jsonl` in it is what FastChat calls so."""
RATINGS = (re.compile(r"\[\[([0-9]+\.?[0-9]*)\]\]"), re.compile(r"\[([0-9]+\.?[0-9]*)\]"))
"""Patterns of a rating: the requested form, then a looser one. The first match counts."""
NO_REPLY = "$ERROR$"
"""FastChat's judgment where the endpoint gave none."""


def rating(judgment: str) -> int | float:
    """Return the rating in a reply, from 0 to HIGHEST; UNRATED where there is none.

    FastChat counts a rating above HIGHEST; here it is none, for a misprint moves a mean far.
    """
    match = next(filter(None, (pattern.search(judgment) for pattern in RATINGS)), None)
    if match is None:
        return UNRATED
    number = float(match[1]) if "." in match[1] else int(match[1])
    return number if number <= HIGHEST else UNRATED


SCORES = schema(
    item_id=pa.string(),  # `<question_id>/<turn>`
    score=pa.float64(),  # 0 to 10; the mean where several judgments count
    cluster=pa.string(),  # the question: its two turns are correlated
    category=pa.string(),
    turn=pa.int64(),
)


# Judging ------------------------------------------------------------------------------------------------------------


@config
class Judge(Stage):
    """Asks the judge for a grade of each answer by itself. In: answers. Out: FastChat's file of judgments."""

    kind: ClassVar[str] = "mt_bench_judgments"
    resumable: ClassVar[bool] = True

    endpoint: BenchmarkJudge
    key: Free[str]
    """The judge's config key, for messages."""
    unrated_share_limit: Free[Share]
    """Largest share of replies without a rating; 1: any."""

    def shared(self) -> Any:
        return [self.endpoint.fields(), self.version, self.endpoint.source_version()]

    def asks(self) -> tuple[str, Endpoint]:
        return self.key, self.endpoint

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows = read_rows(inputs[0], REQUESTS)
        keys = [cell_key(row["system_prompt"], row["user_prompt"]) for row in rows]
        cells = ask_all(
            dict(zip(keys, rows, strict=True)),
            self._request,
            self.endpoint,
            self.key,
            out / WORK / CELLS,
            description="a rating",
            is_usable=lambda cell: rating(cell["text"]) != UNRATED,
            limit_key=f"{self.key.rpartition('.')[0]}.unrated_share_limit",
            limit=self.unrated_share_limit,
            remedy="take another judge or raise the limit: replies are kept, and asked for no more",
        )
        judged = []
        for row, key in zip(rows, keys, strict=True):
            reply = cells[key]["text"] if key in cells else NO_REPLY
            judgment = {
                "question_id": row["question_id"],
                "model": row["model"],
                "judge": [self.endpoint.model, row["prompt"]],
                "user_prompt": row["user_prompt"],
                "judgment": reply,
                "score": rating(reply),
                "turn": row["turn"],
                "tstamp": 0,  # FastChat's times are the clock's; these are the same whenever it is made
            }
            judged.append(judgment)
        (out / MODEL_JUDGMENTS).mkdir(exist_ok=True)
        file = out / MODEL_JUDGMENTS / f"{self.endpoint.model.replace('/', '--')}_single.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in judged))
        unrated = sum(row["score"] == UNRATED for row in judged)
        tokens = {name: sum(cell[name] for cell in cells.values()) for name in ("input_tokens", "output_tokens")}
        write_metrics(
            out, {"judgments": len(judged), "unrated": unrated, "refused": len({*keys}) - len(cells)} | tokens
        )

    def _request(self, row: Row) -> dict[str, Any]:
        texts = (("system", row["system_prompt"]), ("user", row["user_prompt"]))
        return self.endpoint.fields() | {"messages": [{"role": role, "content": text} for role, text in texts]}


# Averages -----------------------------------------------------------------------------------------------------------


class Judgment(TypedDict):
    question_id: int
    model: Annotated[str, Field(min_length=1)]
    judge: Annotated[list[str], Field(min_length=1)]
    """Its name, and that of its prompt."""
    score: Annotated[float, Field(ge=UNRATED, le=HIGHEST)]
    """UNRATED where there is none."""
    turn: Literal[1, 2]
    judgment: NotRequired[str]


@config
class Score(Stage):
    """Averages the judgments of one policy. In: judgments, questions. Out: SCORES rows and `metrics.json`."""

    kind: ClassVar[str] = "mt_bench_scores"

    confidence: Confidence
    """Level of the intervals, such as 0.95."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        folder, questions = inputs
        ((_, judgments),) = read_judgments((folder / MODEL_JUDGMENTS).iterdir()).items()
        categories = {row["question_id"]: row["category"] for row in read_rows(questions, QUESTIONS)}
        metrics, rows = averages(str(folder), judgments, categories, self.confidence)
        write_rows(out, rows, SCORES)
        write_metrics(out, metrics)


def read_judgments(files: Iterable[Path]) -> dict[tuple[str, str], list[Judgment]]:
    """Read (model, judge) -> judgments. Raises UserError that names a row at fault."""
    by_pair = defaultdict[tuple[str, str], list[Judgment]](list)
    for file in files:
        for _, judgment in read_table(Judgment, Source(path=str(file))):
            by_pair[judgment["model"], judgment["judge"][0]].append(judgment)
    return by_pair


def in_fastchats_words(judgments: Iterable[Judgment], categories: Mapping[int, str]) -> bool:
    """Say whether all were asked for by the judge prompt of their question and turn."""
    return all(row["judge"][1:2] == [prompt_name(categories[row["question_id"]], row["turn"])] for row in judgments)


def averages(
    place: str, judgments: Sequence[Judgment], categories: Mapping[int, str], confidence: float
) -> tuple[dict[str, float], list[Row]]:
    """Average judgments of one model by one judge. `categories`: question -> category, of all that must be there.

    Returns score, turn_1, turn_2, a key a category, each with its interval over questions within 0 to HIGHEST, and
    counts; and SCORES rows, one per rated answer, in the order of the questions. Raises UserError that begins with
    `place`.
    """
    import pandas as pd

    table: Any = pd.DataFrame.from_records(judgments).rename(columns={"question_id": "question"})
    if foreign := sorted({*table["question"]} - {*categories}):
        raise UserError(f"{place}: question {foreign[0]} is none of the {len(categories)}; delete its rows")
    answers = list(product(categories, TURNS))
    judged = {*zip(table["question"], table["turn"], strict=True)}
    if lacking := [answer for answer in answers if answer not in judged]:
        (question, turn), count = lacking[0], len(lacking)
        raise UserError(f"{place}: {count} answers have no judgment, such as question {question}, turn {turn}")
    table["category"] = table["question"].map(categories)
    rated = table[table["score"] != UNRATED]
    if rated.empty:
        raise UserError(f"{place}: no judgment holds a rating (all scores are {UNRATED}); judge the answers again")
    groups = {"score": rated} | {f"turn_{turn}": rated[rated["turn"] == turn] for turn in TURNS}
    groups |= {name: rated[rated["category"] == name] for name in dict.fromkeys(categories.values())}
    metrics: dict[str, float] = {}
    for name, group in groups.items():
        metrics |= {name: group["score"].mean()} if len(group) else {}
        questions = group.groupby("question")["score"]
        if len(questions) > 1:
            low, high = ratio_interval(questions.sum().to_numpy(), questions.count().to_numpy(), confidence)
            metrics |= {f"{name}_low": max(0.0, low), f"{name}_high": min(float(HIGHEST), high)}
    means = rated.groupby(["question", "turn"])["score"].mean()
    rows: list[Row] = []
    for question, turn in answers:
        if (question, turn) in means:
            item = {"item_id": f"{question}/{turn}", "score": means[question, turn], "turn": turn}
            rows.append(item | {"cluster": str(question), "category": categories[question]})
    metrics |= {"items": len(rows), "questions": len(categories), "unrated": len(table) - len(rated)}
    return metrics | {"doubled": len(table) - len(answers)}, rows
