"""Artifacts of a run folder, found through its links and read from their files alone: records, numbers, rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, FiniteFloat

from src.kernel.config import UserError
from src.kernel.record import RECORD, damage, read_record
from src.kernel.rows import METRICS, read_metrics

Numbers = dict[str, float]


class Parent(BaseModel):
    kind: str
    key: str


class Record(BaseModel):
    """What is read here of a `record.json`; older ones lack some of it."""

    config: dict[str, Any] = {}
    inputs: list[Parent] = []
    seconds: FiniteFloat = 0.0
    workload: str = ""
    version: Any = None
    commit: str = "–"
    resumed: bool = False


class Artifact(NamedTuple):
    """A finished artifact under the name that a run has for it."""

    name: str
    """Such as `it2/pairs`."""
    kind: str
    key: str
    record: Record

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.key}"

    @property
    def parents(self) -> list[str]:
        """The ids of its inputs."""
        return [f"{parent.kind}/{parent.key}" for parent in self.record.inputs]

    @property
    def device_seconds(self) -> float:
        """Seconds times devices; the workload ends in their number, which older records lack."""
        devices = re.search(r" ([0-9]{1,6})$", self.record.workload)
        return self.record.seconds * (int(devices[1]) if devices else 1)

    def settings(self, *names: str) -> str:
        """Returns the version of its stage and these settings, for a comparison with another artifact's."""
        return json.dumps([self.record.version, [self.record.config.get(name) for name in names]], sort_keys=True)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a damaged file raises into one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of YAML, Arrow, pydantic or the file system
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{path}: cannot be read ({reason}); `verify` names what is damaged") from None


def artifacts_of(links: Path) -> dict[str, Artifact]:
    """Finds the finished artifacts below the links of a run; links to what was cleaned away are passed over."""
    artifacts: dict[str, Artifact] = {}
    with reading(links):
        places = [path for path in sorted(links.rglob("*")) if (path / RECORD).is_file()]
    for path in places:
        name, target = str(path.relative_to(links)), path.resolve()
        with reading(target / RECORD):
            record = Record.model_validate(read_record(target))
        artifacts[name] = Artifact(name, target.parent.name, target.name, record)
    return artifacts


def numbers_of(artifact: Path) -> Numbers:
    """Reads the numbers of an artifact, without those that are unknown."""
    with reading(artifact / METRICS):
        _refuse_damaged(artifact)
        metrics = read_metrics(artifact).items()
        return {key: value for key, value in metrics if isinstance(value, int | float) and math.isfinite(value)}


def rows_of(artifact: Path, item: str, value: str) -> Any:
    """Reads the columns `item` and `value` of an artifact's rows, and `column` and `cluster` where there are such.

    Returns a DataFrame.
    """
    import numpy as np
    import pandas as pd
    from pyarrow.parquet import read_schema

    path = artifact / "rows.parquet"
    with reading(path):
        _refuse_damaged(artifact)
        more = [name for name in ("column", "cluster") if name in read_schema(path).names]
        rows: Any = pd.read_parquet(path, columns=[item, value, *more])
        if not np.isfinite(rows[value]).all() or not rows[item].map(lambda name: isinstance(name, str)).all():
            raise ValueError(f"not every row has a name as {item} and a number as {value}")
        return rows.astype(dict.fromkeys(more, str))


def _refuse_damaged(artifact: Path) -> None:
    if lines := damage(artifact.resolve(), weights=False):
        raise UserError(f"{lines[0]}; `verify` names what is damaged, a run makes it again")
