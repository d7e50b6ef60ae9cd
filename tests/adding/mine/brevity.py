"""A benchmark: how many of the held-out answers keep to a number of words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
from pydantic import PositiveInt

from src.evaluation.benchmark import SCORES, Measure, Planner, Policies
from src.kernel.artifact import Node
from src.kernel.config import config
from src.kernel.rows import RESPONSES, read_rows, write_metrics, write_rows

ROWS = pa.schema({"item_id": pa.string(), "score": pa.float64()})


@config
class Brevity:
    title: ClassVar[str] = "Brevity"
    measures: ClassVar[tuple[Measure, ...]] = (Measure("brief", "brief answers, percent"),)

    most_words: PositiveInt

    def nodes(self, name: str, run: Planner, policies: Policies) -> Iterator[Node]:
        """Yield the scores of each policy's answers to the held-out prompts."""
        stage = BrevityScores(most_words=self.most_words)
        for policy, entry in policies.items():
            answers = entry.answers
            yield run.node(f"{policy}/{name}/{SCORES}", stage, (answers,), rows=answers.rows, job="evaluation")


@config
class BrevityScores:
    """In: answers. Out: one row per prompt, score 1 or 0; `metrics.json` with `brief`, the mean in percent."""

    kind: ClassVar[str] = "brevity_scores"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    most_words: PositiveInt

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows = [
            {"item_id": row["prompt_id"], "score": float(len(row["responses"][0]["text"].split()) <= self.most_words)}
            for row in read_rows(inputs[0], RESPONSES)
        ]
        write_rows(out, rows, ROWS)
        write_metrics(out, {"items": len(rows), "brief": 100 * sum(row["score"] for row in rows) / len(rows)})
