"""Files of AlpacaEval: outputs of a model, annotations of two models' outputs, df_gamed.csv; here or on the hub.

Rows are joined on the instruction, never by where they stand: the library's own join by position shifts every later row
when one is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float
from pydantic import BeforeValidator, Field

from src.data.prompts import same_text
from src.evaluation.benchmark import read_json
from src.kernel.config import Fault, Free, UserError, config
from src.kernel.record import sha256
from src.kernel.rows import prompt_id

OUTPUTS = "model_outputs.json"
BASELINE = "reference_outputs.json"
ANNOTATIONS = "annotations.json"
GAMED = "gamed.csv"
"""Names in artifacts."""
_OFFICIAL = Path(__file__).with_name("official.txt")
"""A line an instruction: its id, and `same_text` of it."""
BASELINE_MODEL = "gpt4_1106_preview"
_BASELINE_SHA256 = "ddce4da7e5cf20eb784db96b97ef4151bcaf8f4b19d45c5e5eb33119622e4cb9"
"""Of its 805 outputs in the canonical order, with \0 between them."""
_COLUMNS = ["index", "preference", "std_delta_len", "instruction_difficulty"]


@dataclass(frozen=True)
class Output:
    instruction: str
    output: str
    generator: str
    dataset: str


def _preference(value: Any) -> Any:
    """Read 0 as the tie of old files, and null, NaN and the library's -1 as None: the annotator failed."""
    if value is None or value != value or value == -1:
        return None
    return value or 1.5


Preference = Annotated[Annotated[float, Field(ge=1, le=2)] | None, BeforeValidator(_preference)]


@dataclass(frozen=True)
class Annotation:
    """A judged pair, in the columns and the order of the official files."""

    instruction: str
    output_1: str
    generator_1: str
    dataset: str
    output_2: str
    generator_2: Annotated[str, Field(min_length=1)]
    annotator: str
    preference: Preference
    """1: output_1 (the baseline's) is better, 2: output_2, and all between; None: the annotator failed."""


R = TypeVar("R", Output, Annotation)


def instruction_id(instruction: str) -> str:
    """Return 16 hex digits: the prompt_id of the instruction as a chat of one turn."""
    return prompt_id([{"role": "user", "content": instruction}])


@lru_cache
def official_ids() -> tuple[str, ...]:
    """Return the ids of the 805 instructions, in the canonical order, which the difficulty's index counts."""
    return tuple(_OFFICIAL.read_text().split()[::2])


def are_official(outputs: Iterable[str]) -> bool:
    """Say whether these are the baseline's outputs to the 805 instructions, in the canonical order."""
    return hashlib.sha256("\0".join(outputs).encode()).hexdigest() == _BASELINE_SHA256


def read_official(path: Path, form: type[R]) -> list[R]:
    """Read a file in the format of model_outputs.json or annotations.json, with each instruction once.

    Raises UserError for any other file.
    """
    rows: list[R] = read_json(Annotated[list[form], Field(min_length=1)], path)
    (instruction, times), *_ = Counter(row.instruction for row in rows).most_common(1)
    if times > 1:
        raise UserError(f"{path}: {times} rows have the instruction {instruction!r:.80}; delete all but one")
    return rows


def joined(path: Path, rows: Sequence[R], ids: Sequence[str]) -> list[R]:
    """Put rows in the order of `ids` of instructions. Raises UserError where some are missing or foreign."""
    by_id = {instruction_id(row.instruction): row for row in rows}
    missing, foreign = [i for i, one in enumerate(ids) if one not in by_id], by_id.keys() - {*ids}
    if missing or foreign:
        near = {*_OFFICIAL.read_text().split()[1::2]}
        for text in (by_id[one].instruction for one in foreign):
            if same_text([{"role": "user", "content": text}]) in near:
                raise UserError(
                    f"{path}: {text!r:.80} has other white space, case or Unicode form than the benchmark's own"
                )
        lacking = (
            f"{len(missing)} of {len(ids)} instructions missing, the first is number {(missing or ['-'])[0]} (from 0)"
        )
        remedy = "where the annotator failed, give a row with preference null"
        raise UserError(f"{path}: {lacking}, and {len(foreign)} rows are none of the benchmark's; {remedy}")
    return [by_id[one] for one in ids]


def write_json(path: Path, rows: Iterable[Output | Annotation]) -> None:
    """Write as the library does; the same rows give the same bytes."""
    plain = [dataclasses.asdict(row) for row in rows]
    path.write_text(json.dumps(plain, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


# The length control's data -------------------------------------------------------------------------------------------

Items = Float[np.ndarray, "item"]


class Gamed(NamedTuple):
    """Judged rows of the baseline told to be short, or long, against itself, to which length control is fitted too."""

    preference: Items
    """From 0 (the baseline) to 1."""
    length: Items
    """Differences over their standard deviation."""
    difficulty: Items
    by_id: dict[str, float]
    """Difficulty by the id of the instruction."""


def read_gamed(path: Path) -> Gamed:
    """Read df_gamed.csv, whose `index` counts the 805 instructions in the canonical order.

    Raises UserError for any other file.
    """
    import pandas as pd

    try:
        table = pd.DataFrame(pd.read_csv(path, usecols=_COLUMNS), dtype=float)
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: not a readable table of numbers ({str(error)!r:.80})") from None
    ids, difficulty = official_ids(), table.groupby("index")["instruction_difficulty"].first().tolist()
    counted = {*table["index"]} == {*range(len(ids))} and len(table) == 2 * len(ids)  # told to be short, and long
    if not counted or not np.isfinite(table.to_numpy()).all() or not table["preference"].between(0, 1).all():
        wanted = f"two rows of numbers for each `index` from 0 to {len(ids) - 1}, a `preference` from 0 to 1"
        raise UserError(f"{path}: needs {wanted}; take the data set's df_gamed.csv")
    columns = [table[name].to_numpy() for name in _COLUMNS[1:]]
    return Gamed(*columns, by_id=dict(zip(ids, difficulty, strict=True)))


@config
class HubFile:
    """A file of AlpacaEval's data set, on the hub or in a local folder."""

    repo: Free[str]
    """Hub id of a data set, or a local folder with its files."""
    name: str
    """Name of the file in it."""
    revision: Free[str | None]
    """Commit, tag or branch of the hub; null: main."""
    key: Free[str]
    """Config key of `repo`, for messages."""

    @property
    def local(self) -> Path | None:
        """Return the path in a local folder; None: it is on the hub. Raises UserError where the folder lacks it."""
        if not Path(self.repo).is_dir():
            return None
        if not (path := Path(self.repo) / self.name).is_file():
            raise UserError(f"{self.key}: no file {path}; put it there")
        return path

    def source_version(self) -> str:
        """Return the hash of a local file, or what the hub is asked for."""
        return sha256(local) if (local := self.local) else f"{self.repo}@{self.revision or 'main'}"

    def fetch(self) -> Path:
        """Get the file, from the hub's cache where it was fetched before. Raises UserError where it cannot be had."""
        if local := self.local:
            return local
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:  # hf_hub_download would try for a minute where there is no network
            wanted = {"repo_type": "dataset", "revision": self.revision, "allow_patterns": self.name}
            (path := Path(snapshot_download(self.repo, **wanted)) / self.name).stat()  # it may not be there
            return path
        except (OSError, ValueError) as error:  # all errors of the hub are one of them
            reason = " ".join(str(error).split())
            without = f", or set {self.key[:-4]}length_control=false" if self.name.endswith(".csv") else ""
            raise (Fault if isinstance(error, LocalEntryNotFoundError) else UserError)(
                f"{self.key}: {self.name} of {self.repo} cannot be fetched ({reason}); name a folder that has it, or "
                f"in mirror the folder before it{without}"
            ) from None
