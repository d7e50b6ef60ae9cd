"""What a model gave no numbers for is kept in the working folder of the unfinished artifact, to be looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from src.kernel import records
from src.kernel.config import UserError

ASIDE = "not_finite"
"""The folder; its rows are those that were read."""
NOT_FINITE = "NaN or infinity"
"""In every such complaint: of a worker process there is nothing but its words."""


@contextmanager
def kept_aside(rows: Sequence[records.Row], schema: pa.Schema, work: Path) -> Iterator[None]:
    """Where the body complains of what is not finite, the rows of the prompts that it names are kept below `work`."""
    try:
        yield
    except UserError as error:
        named = set(re.findall(r"\bprompt (\w+)", str(error)))
        found = [row for row in rows if row["prompt_id"] in named]
        if NOT_FINITE not in str(error) or not found:
            raise
        (work / ASIDE).mkdir(parents=True, exist_ok=True)
        records.write_rows(work / ASIDE, found, schema)
        raise type(error)(f"{error}; what was read is in {work / ASIDE / records.ROWS}") from error
