"""What is published: `published.yaml` beside this file holds every such number that this repository shows."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, PositiveInt, TypeAdapter
from pydantic.dataclasses import dataclass

FILE = Path(__file__).with_name("published.yaml")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Source:
    kind: Literal["paper", "card", "leaderboard"]
    cite: str
    date: Annotated[str, Field(pattern=rf"^(\d{{4}}-\d{{2}}|{UNKNOWN})$")]
    """Year and month; `unknown` is said as such."""


@dataclass(frozen=True)
class Table:
    benchmark: str
    source: str
    """A name in `sources`."""
    measures: list[str]
    policies: dict[Literal["base"] | int, list[float | None]]
    """Of the start policy and of iterations, a value a measure; None: not published."""
    best_of: PositiveInt | None = None
    """Answers that a ranker chose from; None: one answer, as sampled."""
    note: str = ""

    def __post_init__(self) -> None:
        if any(len(values) != len(self.measures) for values in self.policies.values()):
            raise ValueError(f"{self.benchmark}, {self.source}: a policy needs {len(self.measures)} values")

    @property
    def title(self) -> str:
        return f"{self.benchmark}, best of {self.best_of}" if self.best_of else self.benchmark


@dataclass(frozen=True)
class Published:
    system: str
    """Its name where it was published."""
    tables: list[Table]


@dataclass(frozen=True)
class _File:
    sources: dict[str, Source]
    experiments: dict[str, Published]
    """By the name in conf/experiment."""
    others: dict[str, Published]
    """Systems and ablations that no experiment of ours is."""

    def __post_init__(self) -> None:
        known = [*self.experiments.values(), *self.others.values()]
        for table in (table for one in known for table in one.tables):
            if table.source not in self.sources:
                raise ValueError(f"{table.benchmark}: {table.source} is not among the sources")


@lru_cache
def _file() -> _File:
    return TypeAdapter(_File).validate_python(yaml.safe_load(FILE.read_text()))


def published() -> dict[str, Published]:
    """Name of an experiment -> what is published of it."""
    return _file().experiments


def others() -> dict[str, Published]:
    """What is published of systems that no experiment is, and of ablations."""
    return _file().others


def source_of(table: Table) -> Source:
    return _file().sources[table.source]


def cited(table: Table) -> str:
    """Such as `paper, arXiv:2405.00675, 2024-05`, or `card, …, date unknown`."""
    source = source_of(table)
    date = f"date {UNKNOWN}" if source.date == UNKNOWN else source.date
    return ", ".join(filter(None, (source.kind, source.cite, date, table.note)))
