"""Artifacts of a run folder, through its links: their records, numbers and rows, of any age."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from src.experiment.links import LINKS
from src.kernel.config import UserError
from src.kernel.record import RECORD, damage_of, read_record
from src.kernel.rows import METRICS, read_metrics

Numbers = dict[str, float]


class Artifact(NamedTuple):
    name: str
    """In the run, such as `it2/pairs`."""
    kind: str
    key: str
    record: dict[str, Any]

    @property
    def devices(self) -> int:
        """The workload ends in their number; older records do not say."""
        last = self.record.get("workload", "").rpartition(" ")[2]
        return int(last) if re.fullmatch(r"[0-9]{1,6}", last) else 1

    @property
    def device_seconds(self) -> float:
        return float(self.record.get("seconds", 0.0)) * self.devices


def artifacts_of(folder: Path) -> dict[str, Artifact]:
    """Finished ones that the run's links lead to, in the order in which they were made."""
    found = dict[str, Artifact]()
    for place in _leaves(folder / LINKS):
        if _is_there(place / RECORD):
            name, target = str(place.relative_to(folder / LINKS)), place.resolve()
            found[name] = Artifact(name, target.parent.name, target.name, _record(target))
    return found


def _leaves(place: Path) -> Iterator[Path]:
    """Links to artifacts, or copies of them, at any depth."""
    for inner in _listed(place):
        yield from [inner] if inner.is_symlink() or _is_there(inner / RECORD) else _leaves(inner)


def _listed(place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror})") from None


def _is_there(path: Path) -> bool:
    """Whether it was made and not cleaned away. Raises UserError where that cannot be told, as in a loop of links."""
    try:
        path.stat()
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _record(artifact: Path) -> dict[str, Any]:
    """What is read of it here is of its type or missing, as in older ones."""
    try:
        record = read_record(artifact)
    except RecursionError as error:
        raise UserError(f"{artifact / RECORD}: cannot be read ({error}); delete the folder") from None
    parents = record.get("inputs", [])
    sound = {
        "config": isinstance(record.get("config", {}), dict),
        "inputs": isinstance(parents, list) and all(map(_is_parent, parents)),
        "seconds": is_number(record.get("seconds", 0.0)),
        "workload": isinstance(record.get("workload", ""), str),
    }
    if strange := [name for name, is_sound in sound.items() if not is_sound]:
        raise UserError(f"{artifact / RECORD}: not a record of this code ({', '.join(strange)}); delete the folder")
    return record


def _is_parent(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("kind", "key"))


def is_number(value: Any) -> bool:
    """A finite one that a float can hold."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def refuse_damaged(artifact: Path) -> None:
    """Raises UserError where a file that is read here differs from the record."""
    if lines := damage_of(artifact.resolve(), weights=False):
        raise UserError(f"{lines[0]}; `verify` names what is damaged, a run makes it again")


def numbers_of(artifact: Path) -> Numbers:
    """Those that are known. Raises UserError where they cannot be read or are damaged."""
    refuse_damaged(artifact)
    told = read_metrics(artifact)
    try:
        return {key: value for key, value in told.items() if isinstance(value, int | float) and math.isfinite(value)}
    except OverflowError as error:
        raise UserError(f"{artifact / METRICS}: cannot be read ({error}); `verify` names what is damaged") from None


def values_of(artifact: Path, item: str, name: str) -> Numbers:
    """Column `name` of its rows by their column `item`."""
    return {row[item]: row[name] for row in _rows(artifact, item, name)}


def scores_of(artifact: Path) -> dict[str, Numbers]:
    """Column `score` by `item_id`, of each value of `column` (of "" where there is no such column); where there is a
    column `cluster`, its means by that.
    """
    groups: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in _rows(artifact, "item_id", "score", ("column", "cluster")):
        groups[str(row.get("column", ""))][str(row.get("cluster", row["item_id"]))].append(row["score"])
    return {column: {name: fmean(found) for name, found in own.items()} for column, own in groups.items()}


def _rows(artifact: Path, item: str, name: str, more: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Columns `item` and `name`, and those of `more` that it has."""
    import pyarrow.parquet

    path = artifact / "rows.parquet"
    refuse_damaged(artifact)
    try:
        there = [each for each in more if each in pyarrow.parquet.read_schema(path).names]
        rows = pyarrow.parquet.read_table(path, columns=[item, name, *there]).to_pylist()
    except Exception as error:  # of Arrow's many
        raise UserError(f"{path}: cannot be read ({first_line(error)}); `verify` names what is damaged") from None
    if not all(isinstance(row[item], str) and is_number(row[name]) for row in rows):
        raise UserError(f"{path}: not every row has a number as {name}; `verify` names what is damaged")
    return rows


def fingerprint_of(artifact: Artifact, without: Collection[str]) -> str:
    """Version and settings of the stage that made it, but for some fields."""
    settings = artifact.record.get("config", {})
    kept = {key: value for key, value in settings.items() if key not in without}
    return json.dumps([artifact.record.get("version"), kept], sort_keys=True)
