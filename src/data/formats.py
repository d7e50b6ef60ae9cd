"""The rows of one file, by its suffix: JSON lines, CSV, Parquet.

A row comes with its place, `file:line` (of Parquet, which has no lines, `file:row`), both counted from 1.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from src.kernel.config import UserError
from src.kernel.rows import Row

T = TypeVar("T")
Placed = tuple[str, Row]
"""Where a row stands, for messages, and those of its columns that were asked for and are there."""
BATCH_ROWS = 1024
"""Rows decoded at a time: what is in memory does not grow with the file."""
LONGEST_CELL = 2**31 - 1
"""Characters; the csv module would refuse a cell of 131,073."""
EMPTY = "an empty line; delete it"
MEND = "a line is one object {column: value}: mend it or delete it"


def read_jsonl(file: Path, columns: Collection[str]) -> Iterator[Placed]:
    """Lines end at a line feed only: a prompt may hold any other character that Unicode calls a line break."""
    for number, text in _without_blank_end(enumerate(_lines(file), 1)):
        place = f"{file}:{number}"
        row = _json_object(place, text)
        yield place, {name: row[name] for name in columns if name in row}


def read_csv(file: Path, columns: Collection[str]) -> Iterator[Placed]:
    """The first row names the columns. A row is placed at the line of the file on which it begins."""
    records = _without_blank_end(_csv_records(file))
    _, header = next(records, (1, []))
    doubled = next((name for name in header if header.count(name) > 1), None)
    if doubled is not None:
        raise UserError(f"{file}:1: two columns are named {doubled!r}; rename one")
    for number, cells in records:
        place = f"{file}:{number}"
        if not cells:
            raise UserError(f"{place}: {EMPTY}")
        if len(cells) != len(header):
            raise UserError(f"{place}: {len(cells)} cells, but {len(header)} columns; quote cells that hold a comma")
        yield place, {name: cell for name, cell in zip(header, cells, strict=True) if name in columns}


def read_parquet(file: Path, columns: Collection[str]) -> Iterator[Placed]:
    """Columns that are not asked for are not read from the disk."""
    number = 0
    try:
        with pq.ParquetFile(file) as table:
            present = [name for name in table.schema_arrow.names if name in columns]
            for batch in table.iter_batches(BATCH_ROWS, columns=present):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}:{number}", row
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        what = f"not readable as Parquet after row {number} ({_first_line(error)})"
        raise UserError(f"{file}: {what}; write it again") from None


def count_jsonl(file: Path) -> int:
    """Without reading what the lines say."""
    return sum(1 for _ in _without_blank_end(enumerate(_lines(file), 1)))


def count_csv(file: Path) -> int:
    return sum(1 for _ in islice(_without_blank_end(_csv_records(file)), 1, None))


def count_parquet(file: Path) -> int:
    try:
        return pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: not readable as Parquet ({_first_line(error)}); write it again") from None


READERS: dict[str, Callable[[Path, Collection[str]], Iterator[Placed]]] = {
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
    ".csv": read_csv,
}
COUNTERS: dict[str, Callable[[Path], int]] = {".jsonl": count_jsonl, ".parquet": count_parquet, ".csv": count_csv}


def _json_object(place: str, text: str) -> dict[str, Any]:
    if "\0" in text:
        raise UserError(f"{place}: NUL bytes in it, as UTF-16 has them; save the file as UTF-8")
    try:
        row = json.loads(text.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        what = f"not JSON ({error.msg} at column {error.colno}); {MEND}" if text.strip() else EMPTY
        raise UserError(f"{place}: {what}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        why = _first_line(error).partition(";")[0]  # what else Python says is advice for programs
        raise UserError(f"{place}: not JSON that can be read ({why}); {MEND}") from None
    if not isinstance(row, dict):
        raise UserError(f"{place}: not a JSON object but a {type(row).__name__}; {MEND}")
    return row


def _csv_records(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line on which the record begins, its cells); an empty line is a record without cells."""
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(_lines(file), strict=True)
    while True:
        begins = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{file}:{begins}: not CSV ({error}); is a quote open, or not doubled inside a cell?"
            ) from None
        yield begins, cells


def _lines(file: Path) -> Iterator[str]:
    """With their line feeds; without the mark that some editors put before the first."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{file}:{number}: not UTF-8 ({error.reason}); save the file as UTF-8") from None


def _without_blank_end(numbered: Iterable[tuple[int, T]]) -> Iterator[tuple[int, T]]:
    """Empty lines at the end are none of the rows; those before another row are kept, to be refused there."""
    blank: list[tuple[int, T]] = []
    for number, content in numbered:
        if not content or content in ("\n", "\r\n"):
            blank.append((number, content))
            continue
        yield from blank
        blank = []
        yield number, content


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
