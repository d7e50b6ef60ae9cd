"""What is published of a system that an experiment reproduces: `published.yaml` beside this file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Table:
    benchmark: str
    source: Literal["paper", "card", "leaderboard"]
    measures: list[str]
    policies: dict[Literal["base"] | int, list[float | None]]
    """Of the start policy and of iterations, a value a measure; None: not published."""
    note: str = ""

    def __post_init__(self) -> None:
        if any(len(values) != len(self.measures) for values in self.policies.values()):
            raise ValueError(f"{self.benchmark}, {self.source}: a policy needs {len(self.measures)} values")


@dataclass(frozen=True)
class Published:
    system: str
    """Its name where it was published."""
    tables: list[Table]


@lru_cache
def published() -> dict[str, Published]:
    """Name of an experiment -> what is published of it."""
    return TypeAdapter(dict[str, Published]).validate_python(yaml.safe_load(FILE.read_text()))
