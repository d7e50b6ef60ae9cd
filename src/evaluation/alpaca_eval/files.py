"""Files of AlpacaEval: outputs of a model, annotations of two models' outputs, df_gamed.csv; here or on the hub.

Rows are joined on the instruction, never by where they stand: the library's own join by position shifts every later row
when one is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float
from pydantic import BeforeValidator, Field, TypeAdapter

from src.evaluation.foreign_rows import Text, checked, read_json, shortened
from src.kernel.config import Free, UserError, YamlPath, config
from src.kernel.record import sha256
from src.kernel.rows import prompt_id

OUTPUTS = "model_outputs.json"
BASELINE = "reference_outputs.json"
ANNOTATIONS = "annotations.json"
GAMED = "gamed.csv"
"""Names in artifacts."""
_OFFICIAL = Path(__file__).with_name("official.txt")
_COLUMNS = ["index", "preference", "std_delta_len", "instruction_difficulty"]
_NOISE = 1e-6
"""Between what two rows of df_gamed.csv say of one instruction; the first is taken, as in the library."""


class Output(NamedTuple):
    instruction: Text
    output: Text
    generator: Text
    dataset: Text


def _preference(value: Any) -> Any:
    """0 is a tie of old files; null, NaN and the library's -1 say that the annotator failed."""
    if value is None or value != value or value == -1:
        return None
    return 1.5 if type(value) in (int, float) and value == 0 else value


Preference = Annotated[Annotated[float, Field(ge=1, le=2)] | None, BeforeValidator(_preference)]


class Annotation(NamedTuple):
    """A judged pair, in the columns and the order of the official files."""

    instruction: Text
    output_1: Text
    generator_1: Text
    dataset: Text
    output_2: Text
    generator_2: Text
    annotator: Text
    preference: Preference
    """1: output_1 (the baseline's) is better, 2: output_2, and all between; None: the annotator failed."""


R = TypeVar("R", Output, Annotation)
Expected = Mapping[str, str]
"""Id of an instruction -> what messages call it, in the order that is wanted."""


def instruction_id(instruction: str) -> str:
    """Makes 16 hex digits: the prompt_id of the instruction as a chat of one turn."""
    return prompt_id([{"role": "user", "content": instruction}])


@lru_cache
def official_ids() -> tuple[str, ...]:
    """Reads the ids of the 805 instructions, in the canonical order, which the difficulty's index counts."""
    return tuple(_OFFICIAL.read_text().split())


def official() -> Expected:
    """Names the 805 instructions, where their texts are not at hand."""
    ids = official_ids()
    return {one: f"number {i} of the {len(ids)} (from 0)" for i, one in enumerate(ids)}


def expected(outputs: Iterable[Output]) -> Expected:
    return {instruction_id(row.instruction): repr(shortened(row.instruction)) for row in outputs}


def read_outputs(path: Path) -> list[Output]:
    """Reads rows in the format of model_outputs.json, each instruction once, all of one generator.

    Raises UserError for any other file.
    """
    return _read(path, Output, "generator")


def read_annotations(path: Path) -> list[Annotation]:
    """Reads rows in the format of annotations.json, each instruction once, of one pair of models and one annotator.

    Raises UserError for any other file.
    """
    return _read(path, Annotation, "generator_1", "generator_2", "annotator")


def _read(path: Path, form: type[R], *same: str) -> list[R]:
    found = read_json(path)
    if not isinstance(found, list) or not found:
        raise UserError(f"{path}: no list of rows; the official format is [{{{', '.join(form._fields)}}}, …]")
    adapter, rows, places = TypeAdapter(form), list[R](), dict[str, int]()
    for i, row in enumerate(found):
        columns = {name: row[name] for name in form._fields if name in row} if isinstance(row, dict) else {}
        rows.append(checked(adapter, columns, f"{path}: row {i} (from 0)"))
        if (first := places.setdefault(rows[-1].instruction, i)) != i:
            raise UserError(f"{path}: rows {first} and {i} (from 0) have the same instruction; delete one of them")
    for name in same:
        if len(values := sorted({getattr(row, name) for row in rows})) > 1:
            raise UserError(f"{path}: {name}: {', '.join(values[:3])} in one file; give each a file of its own")
    return rows


def joined(path: Path, rows: Sequence[R], wanted: Expected) -> list[R]:
    """Puts rows in the order of `wanted`. Raises UserError, naming the first, where some are missing or foreign."""
    by_id = {instruction_id(row.instruction): row for row in rows}
    foreign = [row.instruction for one, row in by_id.items() if one not in wanted]
    if foreign:
        raise UserError(
            f"{path}: {len(foreign)} rows are no instruction of the benchmark, the first {shortened(foreign[0])!r}; "
            "delete them, or name the `baseline` that they belong to"
        )
    missing = [label for one, label in wanted.items() if one not in by_id]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(wanted)} instructions missing, the first {missing[0]}; "
            "where the annotator failed, give a row with preference null"
        )
    return [by_id[one] for one in wanted]


def read_joined(path: Path, baseline: Path | None) -> list[Annotation]:
    """Reads annotations in the order of the baseline's outputs, or of the 805 instructions where there are none.

    Raises UserError for rows that are missing, doubled or foreign, and where another baseline was judged.
    """
    if baseline is None:
        return joined(path, read_annotations(path), official())
    outputs = read_outputs(baseline)
    rows = joined(path, read_annotations(path), expected(outputs))
    others = sum(one.output != judged.output_1 for one, judged in zip(outputs, rows, strict=True))
    if others:
        raise UserError(
            f"{path}: output_1 of {others} rows is not the output of {outputs[0].generator} in {baseline.name}; "
            "another baseline was judged"
        )
    return rows


def write_rows(path: Path, rows: Iterable[R]) -> None:
    """Writes as the library does; the same rows give the same bytes."""
    path.write_text(json.dumps([row._asdict() for row in rows], ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


# The length control's data -------------------------------------------------------------------------------------------

Items = Float[np.ndarray, "item"]


class Gamed(NamedTuple):
    """Judged rows of the baseline told to be short, or long, against itself."""

    preference: Items
    """From 0 (the baseline) to 1."""
    length: Items
    """Differences over their standard deviation."""
    difficulty: Items


class Control(NamedTuple):
    """What the length control is fitted to besides the model."""

    gamed: Gamed
    difficulty: dict[str, float]
    """By the id of the instruction."""


def read_gamed(path: Path) -> Control:
    """Reads df_gamed.csv, whose `index` counts the 805 instructions in the canonical order.

    Raises UserError for any other file.
    """
    import pandas as pd

    try:
        table: Any = pd.read_csv(path, usecols=_COLUMNS).astype(float)
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: not a readable table of numbers ({shortened(str(error))})") from None
    index, difficulty, ids = table["index"], table["instruction_difficulty"], official_ids()
    first = difficulty.groupby(index).first()
    for wrong, reason in (
        (not np.isfinite(table).all(axis=None), "a number is missing or infinite"),
        (list(first.index) != list(range(len(ids))), f"index: must count the instructions, 0 to {len(ids) - 1}"),
        (not table["preference"].between(0, 1).all(), "preference: must be from 0 (the baseline) to 1"),
        ((difficulty - index.map(first)).abs().max() > _NOISE, "an instruction has two difficulties"),
    ):
        if wrong:
            raise UserError(f"{path}: {reason}; take the data set's df_gamed.csv")
    gamed = Gamed(*(table[name].to_numpy() for name in _COLUMNS[1:]))
    return Control(gamed, dict(zip(ids, map(float, first), strict=True)))


@config
class HubFile:
    """A file of AlpacaEval's data set: on the hub, in a folder that mirrors it, or anywhere on this machine."""

    repo: Free[str]
    """Hub id of a data set, or a local folder with its files."""
    name: str
    """Name of the file in it."""
    revision: Free[str | None]
    """Commit, tag or branch of the hub; null: main."""
    path: Free[YamlPath | None]
    """Read in place of it."""
    key: Free[str]
    """Config key of `path`, for messages."""

    @property
    def local(self) -> Path | None:
        """Where it lies; None: on the hub. Raises UserError for a path where there is no file."""
        path = self.path or (Path(self.repo) / self.name if Path(self.repo).is_dir() else None)
        if path and not path.is_file():
            raise UserError(f"{self.key}: no file {path}; give its path here")
        return path

    def source_version(self) -> str:
        """Hashes a local file; of the hub, says what is asked for."""
        return sha256(local) if (local := self.local) else f"{self.repo}@{self.revision or 'main'}"

    def fetch(self) -> Path:
        """Gets the file, from the hub's cache where it was fetched before. Raises UserError where it cannot be had."""
        if local := self.local:
            return local
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.repo, self.name, repo_type="dataset", revision=self.revision))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            raise UserError(
                f"{self.key}: {self.name} of {self.repo} cannot be fetched from the hub; give its path here "
                f"({' '.join(str(error).split())})"
            ) from None
