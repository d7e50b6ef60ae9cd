"""The rows stages hand to each other: one Parquet file an artifact, `rows.parquet`, with a fixed schema.

`datasets.load_dataset("parquet", data_files=...)` reads every one of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from src.kernel.cells import cell_of, line_of
from src.kernel.config import UserError
from src.kernel.disk import make_folder, sync

ROWS = "rows.parquet"
SPEED = "speed/"
"""Prefix of metrics that depend on the clock and the machine: two runs of one command differ in them."""
Row = dict[str, Any]

_ids = pa.list_(pa.int32())
_messages = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))

PROMPTS = pa.schema(
    {
        "prompt_id": pa.string(),  # hash of the messages
        "messages": _messages,
        "source": pa.string(),
        "checks": pa.string(),  # JSON list of checkable instructions; "[]" where there are none
    }
)

ANSWER = pa.struct(
    {
        "text": pa.string(),
        "token_ids": _ids,  # as sampled; ends in an EOS id exactly where one was sampled
        "finish_reason": pa.string(),  # "stop" (EOS sampled) or "length" (cut off)
        "seed": pa.uint64(),
        "source": pa.string(),  # "policy", or where an outside answer came from
    }
)

RESPONSES = pa.schema(
    [*PROMPTS, pa.field("prompt_token_ids", _ids), pa.field("responses", pa.list_(ANSWER))]  # K answers
)

RANKING = pa.schema(
    {
        "prompt_id": pa.string(),
        "logits": pa.list_(pa.list_(pa.float64())),  # K x K directed logits, NaN diagonal; null for scalar rankers
        "scores": pa.list_(pa.float64()),  # K scores in logits; null for pairwise rankers
        "truncated": pa.list_(pa.bool_()),  # K flags: the ranker did not see the whole answer
        "prompt_truncated": pa.bool_(),  # it did not see the whole prompt
        "terms": pa.list_(pa.struct({"name": pa.string(), "values": pa.list_(pa.float64())})),  # parts of a score
    }
)

PAIRS = pa.schema(
    {
        "prompt_id": pa.string(),
        "prompt_token_ids": _ids,
        "chosen_token_ids": _ids,
        "rejected_token_ids": _ids,
        "chosen_win": pa.float64(),  # P(y_w > pi_t), in (0, 1)
        "rejected_win": pa.float64(),
        "chosen_beats_rejected": pa.float64(),  # P(y_w > y_l)
        "chosen_index": pa.int32(),
        "rejected_index": pa.int32(),
        "chosen_source": pa.string(),
        "rejected_source": pa.string(),
    }
)

REFERENCE = pa.schema(
    [
        *PAIRS,
        pa.field("ref_chosen_logp", pa.float64()),
        pa.field("ref_rejected_logp", pa.float64()),
    ]  # sums, nats
)


class Journal:
    """Progress of a resumable stage: index -> part of a row, one JSON-lines file of whole lines.

    A line is as one of cells: one torn by a crash is cut off on opening, a damaged one is not read.
    """

    def __init__(self, work: Path) -> None:
        make_folder(work)
        self._path = work / "journal.jsonl"
        self._path.touch()
        sync(work)
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        os.truncate(self._path, len(whole))
        self.rows: dict[int, Row] = {}
        damaged = 0
        for line in whole.split(b"\n")[:-1]:
            try:
                index, row = cell_of(line)
                self.rows |= {int(index): dict(row)}
            except (ValueError, TypeError, OverflowError):
                damaged += 1
        if damaged:
            print(f"{self._path}: {damaged} damaged lines; what they held is computed again", file=sys.stderr)

    def add(self, rows: Iterable[tuple[int, Row]]) -> None:
        new = dict(rows)
        with self._path.open("a") as file:
            file.write("".join(line_of(str(index), row) for index, row in new.items()))
            file.flush()
            os.fsync(file.fileno())
        self.rows |= new


def prompt_id(messages: list[dict[str, str]]) -> str:
    """16 hex digits that depend on the roles and contents only."""
    canonical = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def last_user_message(row: Row) -> str:
    """What the user of a PROMPTS or RESPONSES row said last."""
    return next(m["content"] for m in reversed(row["messages"]) if m["role"] == "user")


def write_rows(folder: Path, rows: Iterable[Row], schema: pa.Schema) -> None:
    """Write `folder/rows.parquet`; the same rows give the same bytes."""
    write_table(folder / ROWS, rows, schema)


def write_table(file: Path | IO[bytes], rows: Iterable[Row], schema: pa.Schema) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), file)


def read_rows(folder: Path, schema: pa.Schema) -> list[Row]:
    """All rows of an artifact. Raises UserError when the file is missing, damaged or has other columns."""
    path = folder / ROWS
    try:
        table = pq.read_table(path)
        missing = [name for name in schema.names if name not in table.column_names]
        rows = [] if missing else table.select(schema.names).to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from None
    if missing:
        raise UserError(f"{path}: lacks the columns {', '.join(missing)}")
    return rows
