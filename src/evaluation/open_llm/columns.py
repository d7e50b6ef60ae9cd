"""A column of a leaderboard: a task of lm-eval, and how its number becomes the published one."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from src.kernel.config import Label, config

Choices = Annotated[int, Field(ge=2)]
"""Of a question: guessing is right once in so many."""


@config
class Column:
    key: Label
    """In metrics.json."""
    title: str
    """As published."""
    task: Label
    """A task or a group of lm-eval."""
    shots: NonNegativeInt
    """Solved examples before each question."""
    metrics: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    """As lm-eval writes them, `metric,filter`; the column is their mean, and the first one scores an item."""
    choices: Choices | dict[Label, Choices] | None = None
    """What guessing gets is subtracted: of the task, or of each of its subtasks, which are then averaged."""
    subtasks: PositiveInt | None = None
    """So many are averaged, each counting for one whatever its size; null: the group's own number."""
    needs: dict[str, str] = field(default_factory=dict)
    """Packages beyond lm-eval -> the version, or how it begins; empty: any."""

    def __post_init__(self) -> None:
        if self.subtasks is not None and isinstance(self.choices, dict):
            raise ValueError("subtasks: choices says already which there are; leave one of them out")
        for metric in self.metrics:
            if metric.count(",") != 1:
                raise ValueError(f"metrics: {metric!r} is no metric and filter, such as acc,none")


def without_guessing(value: float, choices: int | None) -> float:
    """A share in [0, 1], of which what guessing gets is 0 and all is 1."""
    if choices is None:
        return value
    chance = 1 / choices
    return max(0.0, (value - chance) / (1 - chance))


def slope(choices: int | None) -> float:
    """How many times larger a standard error becomes."""
    return 1.0 if choices is None else 1 / (1 - 1 / choices)
