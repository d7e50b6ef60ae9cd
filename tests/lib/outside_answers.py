"""Sources of answers that the policy did not give, and what they are given to answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from answer_server import IMPATIENT, AnswerServer, answering
from asked_engine import QUESTIONS, prompts
from hydra.utils import instantiate
from tiny_run import composed

from src import records
from src.outside.source import OUTSIDE
from src.records import Row


@pytest.fixture
def server() -> Iterator[AnswerServer]:
    with answering() as server:
        yield server


def source(kind: str, *overrides: str) -> Any:
    """The source of conf/answers/<kind>.yaml in a run of seed 0 whose policy answers in 16 tokens."""
    own = [f"data.answers.x.{override}" for override in overrides]
    cfg = composed(f"+answers@data.answers.x={kind}", "sampling.max_new_tokens=16", *own)
    return instantiate(cfg.data.answers.x, _convert_="all")


def asking(url: str, *overrides: str) -> Any:
    return source("endpoint", f"endpoint.base_url={url}", "source=gpt", *IMPATIENT, *overrides)


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


IDS = {question: records.prompt_id(chat(question)) for question in QUESTIONS}


def written(folder: Path, rows: list[dict[str, Any]], name: str = "outside.jsonl") -> Path:
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked_of(asked: Any, place: Path) -> tuple[list[Row], dict[str, int]]:
    (out := place / "out").mkdir(parents=True, exist_ok=True)
    asked.stage("data.answers.x")(prompts(place / "prompts"), out=out)
    return records.read_rows(out, OUTSIDE), json.loads((out / "metrics.json").read_text())
