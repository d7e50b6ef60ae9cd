"""Files in the official formats of AlpacaEval: outputs of a model, and annotations of two models' outputs.

Rows are joined on the instruction, never by where they stand: the library's own join by position shifts every later row
when one is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from src.kernel.config import UserError
from src.kernel.rows import prompt_id

OUTPUTS = "model_outputs.json"
BASELINE = "reference_outputs.json"
ANNOTATIONS = "annotations.json"
TIE = 1.5
FAILED = -1
"""What the library writes into its caches where the annotator gave no preference."""
SHORT = 60
"""Characters of an instruction that messages show."""
_OFFICIAL = Path(__file__).with_name("official.txt")


class Output(NamedTuple):
    instruction: str
    output: str
    generator: str
    dataset: str


class Annotation(NamedTuple):
    """A judged pair, in the columns and the order of the official files."""

    instruction: str
    output_1: str
    generator_1: str
    dataset: str
    output_2: str
    generator_2: str
    annotator: str
    preference: float | None
    """1: output_1 (the baseline's) is better, 2: output_2, and all between; None: the annotator failed."""


R = TypeVar("R", Output, Annotation)
Expected = Mapping[str, str]
"""Id of an instruction -> what messages call it, in the order that is wanted."""


def instruction_id(instruction: str) -> str:
    """16 hex digits: the prompt_id of the instruction as a chat of one turn."""
    return prompt_id([{"role": "user", "content": instruction}])


@lru_cache
def official_ids() -> tuple[str, ...]:
    """Of the 805 instructions, in the canonical order, which the difficulty's index counts."""
    return tuple(_OFFICIAL.read_text().split())


def official() -> Expected:
    """The 805 instructions, where their texts are not at hand."""
    ids = official_ids()
    return {one: f"number {i} of the {len(ids)} (from 0)" for i, one in enumerate(ids)}


def expected(outputs: Iterable[Output]) -> Expected:
    return {instruction_id(row.instruction): shortened(row.instruction) for row in outputs}


def shortened(instruction: str) -> str:
    text = " ".join(instruction.split())
    return repr(text if len(text) <= SHORT else f"{text[:SHORT]}…")


def read_outputs(path: Path) -> list[Output]:
    """Rows of a file in the format of model_outputs.json, each instruction once; `generator` is the same in all.

    Raises UserError for any other file.
    """
    rows = [_output(f"{path}: row {i}", row) for i, row in enumerate(_rows(path, Output._fields))]
    _refuse_doubled(path, [row.instruction for row in rows])
    _refuse_mixed(path, "generator", [row.generator for row in rows])
    return rows


def read_annotations(path: Path) -> list[Annotation]:
    """Rows of a file in the format of annotations.json, each instruction once, of one pair of models and one annotator.

    Raises UserError for any other file.
    """
    rows = [_annotation(f"{path}: row {i}", row) for i, row in enumerate(_rows(path, Annotation._fields))]
    _refuse_doubled(path, [row.instruction for row in rows])
    for name in ("generator_1", "generator_2", "annotator"):
        _refuse_mixed(path, name, [getattr(row, name) for row in rows])
    return rows


@lru_cache
def generator_of(path: Path) -> str:
    """The model that the annotations judge. Raises like `read_annotations`."""
    return read_annotations(path)[0].generator_2


def joined(path: Path, rows: Sequence[R], wanted: Expected) -> list[R]:
    """The rows in the order of `wanted`. Raises UserError, naming the first, where some are missing or foreign."""
    by_id = {instruction_id(row.instruction): row for row in rows}
    foreign = [row.instruction for one, row in by_id.items() if one not in wanted]
    if foreign:
        raise UserError(
            f"{path}: {_count(foreign)} of it no instruction of the benchmark, the first {shortened(foreign[0])}; "
            "delete them, or name the `baseline` that they belong to"
        )
    missing = [label for one, label in wanted.items() if one not in by_id]
    if missing:
        null = "; where the annotator failed, say so by a row with preference null" if _judged(rows) else ""
        raise UserError(f"{path}: {len(missing)} of {len(wanted)} instructions missing, the first {missing[0]}{null}")
    return [by_id[one] for one in wanted]


def read_joined(path: Path, baseline: Path | None, first: int | None) -> list[Annotation]:
    """Annotations in the order of the baseline's outputs, where those are at hand, else of the 805 instructions.

    Rows behind the `first` instructions are left out. Raises UserError for rows that are missing, doubled or foreign,
    and where another output was judged than the baseline's.
    """
    if baseline is None:
        return joined(path, read_annotations(path), official())[:first]
    outputs = read_outputs(baseline)
    rows = read_annotations(path)
    wanted = expected(outputs)
    if first is not None:  # the questions were cut too
        known = {row.instruction for row in outputs}
        rows = [row for row in rows if row.instruction in known]
    found = joined(path, rows, wanted)
    others = sum(own.output != judged.output_1 for own, judged in zip(outputs, found, strict=True))
    if others:
        raise UserError(
            f"{path}: output_1 of {others} rows is not the output of {outputs[0].generator} in {baseline.name}; "
            "another baseline was judged"
        )
    return found


def write_rows(path: Path, rows: Iterable[R]) -> None:
    """As the library writes them; the same rows give the same bytes."""
    path.write_text(json.dumps([row._asdict() for row in rows], ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _judged(rows: Sequence[Any]) -> bool:
    return any(isinstance(row, Annotation) for row in rows)


def _count(foreign: Sequence[str]) -> str:
    return f"{len(foreign)} row{'s' if len(foreign) > 1 else ''}"


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path}: no text; the official format is a list of rows in JSON") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: no list of rows; the official format is [{{{', '.join(columns)}}}, …]")
    for i, row in enumerate(rows):
        lacking = [name for name in columns if not isinstance(row, dict) or name not in row]
        if lacking:
            raise UserError(f"{path}: row {i} (from 0) lacks {', '.join(lacking)}")
    return rows


def _output(place: str, row: dict[str, Any]) -> Output:
    return Output(**{name: _text(place, name, row[name]) for name in Output._fields})


def _annotation(place: str, row: dict[str, Any]) -> Annotation:
    texts = {name: _text(place, name, row[name]) for name in Annotation._fields if name != "preference"}
    return Annotation(**texts, preference=_preference(place, row["preference"]))


def _text(place: str, name: str, value: Any) -> str:
    try:
        if isinstance(value, str):
            value.encode()
            return value
    except UnicodeEncodeError:
        raise UserError(f"{place}: {name}: holds half of a character (a lone surrogate)") from None
    raise UserError(f"{place}: {name}: {value!r} is no text")


def _preference(place: str, value: Any) -> float | None:
    """0 means a tie in old files; NaN, null and -1 that the annotator failed."""
    if value is None or value != value or value == FAILED:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or (value != 0 and not 1 <= value <= 2):
        raise UserError(f"{place}: preference: {value!r} is not from 1 (output_1) to 2 (output_2), 0 for a tie or null")
    return float(value) or TIE


def _refuse_doubled(path: Path, instructions: Sequence[str]) -> None:
    seen: set[str] = set()
    doubled = [one for one in instructions if one in seen or seen.add(one)]
    if doubled:
        raise UserError(
            f"{path}: {len(doubled)} instructions more than once, the first {shortened(doubled[0])}; "
            "delete all but one row of each"
        )


def _refuse_mixed(path: Path, name: str, values: Sequence[str]) -> None:
    if len(found := sorted(set(values))) > 1:
        raise UserError(f"{path}: {name}: {', '.join(found[:3])} in one file; give each a file of its own")
