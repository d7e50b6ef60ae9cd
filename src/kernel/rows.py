"""The files that stages hand to each other: `rows.parquet` with a fixed schema, and `metrics.json` with numbers.

`datasets.load_dataset("parquet", data_files=...)` reads every file of rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from src.kernel.config import UserError

ROWS = "rows.parquet"
METRICS = "metrics.json"
NOT_FINITE = "NaN or infinity"
"""The words of every complaint that a model gave no number."""
SPEED = "speed/"
"""Prefix of metrics that depend on the clock and the machine: two runs of one command differ in them."""
Row = dict[str, Any]


def schema(*fields: pa.Field, **types: pa.DataType) -> pa.Schema:
    """Return the schema of rows with these columns."""
    return pa.schema([*fields, *pa.schema(types)])


_ids = pa.list_(pa.int32())
_messages = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))

PROMPTS = schema(
    prompt_id=pa.string(),  # hash of the messages
    messages=_messages,
    source=pa.string(),
    checks=pa.string(),  # JSON list of checkable instructions; "[]" where there are none
)

ANSWER = pa.struct(
    schema(
        text=pa.string(),
        token_ids=_ids,  # as sampled; ends in an EOS id exactly where one was sampled
        finish_reason=pa.string(),  # "stop" (EOS sampled) or "length" (cut off)
        seed=pa.uint64(),
        source=pa.string(),  # "policy", or where an outside answer came from
    )
)

RESPONSES = schema(*PROMPTS, prompt_token_ids=_ids, responses=pa.list_(ANSWER))  # K answers

RANKING = schema(
    prompt_id=pa.string(),
    logits=pa.list_(pa.list_(pa.float64())),  # K x K directed logits, NaN diagonal; null for scalar rankers
    scores=pa.list_(pa.float64()),  # K scores in logits; null for pairwise rankers
    truncated=pa.list_(pa.bool_()),  # K flags: the ranker did not see the whole answer
    prompt_truncated=pa.bool_(),  # it did not see the whole prompt
    terms=pa.list_(pa.struct({"name": pa.string(), "values": pa.list_(pa.float64())})),  # parts of a score
)

PAIRS = schema(
    prompt_id=pa.string(),
    prompt_token_ids=_ids,
    chosen_token_ids=_ids,
    rejected_token_ids=_ids,
    chosen_win=pa.float64(),  # P(y_w > pi_t), in [0, 1]
    rejected_win=pa.float64(),
    chosen_beats_rejected=pa.float64(),  # P(y_w > y_l)
    chosen_index=pa.int32(),
    rejected_index=pa.int32(),
    chosen_source=pa.string(),
    rejected_source=pa.string(),
)

# With the sums of log-probabilities, in nats.
REFERENCE = schema(*PAIRS, ref_chosen_logp=pa.float64(), ref_rejected_logp=pa.float64())


# Rows ---------------------------------------------------------------------------------------------------------------


def prompt_id(messages: list[dict[str, str]]) -> str:
    """Return 16 hex digits that depend on the roles and contents only."""
    canonical = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def last_user_message(row: Row) -> str:
    """Return what the user of a PROMPTS or RESPONSES row said last."""
    return next(m["content"] for m in reversed(row["messages"]) if m["role"] == "user")


def write_rows(folder: Path, rows: Iterable[Row], schema: pa.Schema | None) -> None:
    """Write `folder/rows.parquet`; the same rows give the same bytes. None: the columns are those of the first row."""
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), folder / ROWS)


def read_rows(folder: Path, schema: pa.Schema) -> list[Row]:
    """Return all rows of an artifact. Raises UserError when the file is missing, damaged or has other columns."""
    path = folder / ROWS
    try:
        table = pq.read_table(path)
        if missing := [name for name in schema.names if name not in table.column_names]:
            raise UserError(f"{path}: lacks the columns {', '.join(missing)}")
        return table.select(schema.names).to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from None


# Metrics ------------------------------------------------------------------------------------------------------------


def write_metrics(out: Path, numbers: Mapping[str, float | None]) -> None:
    """Write `metrics.json`; None is a number that is not known.

    Raises ValueError, and writes nothing, where a number is NaN or infinite.
    """
    (out / METRICS).write_text(as_json(numbers))


def read_metrics(artifact: Path) -> dict[str, Any]:
    """Return the numbers of a finished artifact. Raises UserError where they cannot be read."""
    path = artifact / METRICS
    try:
        numbers = json.loads(path.read_text())
        if not isinstance(numbers, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete the folder, the next run makes it again") from None
    return numbers


def as_json(numbers: Mapping[str, Any]) -> str:
    """Return a file of JSON. Raises ValueError for NaN and infinity, which are no JSON."""
    return json.dumps(numbers, indent=1, allow_nan=False) + "\n"
