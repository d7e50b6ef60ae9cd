"""A column of a leaderboard: a task of lm-eval; and result files of lm-eval as the published numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired, TypeGuard

from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter
from typing_extensions import TypedDict

from src.evaluation.foreign_rows import checked, read_json
from src.evaluation.statistics import normal_interval
from src.kernel.config import Label, UserError, config

AVERAGE = "average"
Choices = Annotated[int, Field(ge=2)]
"""Choices of a question: guessing is right once in so many."""


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


class Value(NamedTuple):
    value: float
    """In [0, 1]."""
    error: float | None
    """Standard error; None: not known."""


_Results = TypedDict(
    "_Results",
    {
        "results": dict[str, dict[str, Any]],
        "n-shot": dict[str, Any],
        "group_subtasks": NotRequired[dict[str, list[str]] | None],
        "n-samples": NotRequired[dict[str, dict[str, Any]] | None],
        "config": NotRequired[dict[str, Any] | None],
        "chat_template": NotRequired[Any],
    },
)
"""What is read of a file of lm-eval 0.4."""
_RESULTS = TypeAdapter(_Results)


class _File(NamedTuple):
    path: Path
    content: _Results


Files = Mapping[str, _File]
"""Task or group -> the file that has it."""


def score_files(
    paths: Iterable[Path], columns: Sequence[Column], chat_template: bool, confidence: float, limited: bool = False
) -> dict[str, float]:
    """Computes a percentage a column and their `average`, with `_low` and `_high` where standard errors are known.

    `limited`: a part of a task's items will do. Raises UserError for a task that is missing, in two files, of other
    shots, of a part of its items, or, where the leaderboard had none, under a chat template; it names the file.
    """
    files: dict[str, _File] = {}
    for path in paths:
        content = _read(path)
        for task in content["results"]:
            if task in files:
                raise UserError(f"{path}: {task} is in {files[task].path} too; leave one of them out")
            files[task] = _File(path, content)
    values = {column.key: _column(column, files, chat_template, limited) for column in columns}
    values[AVERAGE] = _mean(list(values.values()))
    numbers: dict[str, float] = {}
    for key, (value, error) in values.items():
        numbers[key] = 100 * value
        if error is not None:
            low, high = normal_interval(value, error, confidence, most=1.0)
            numbers |= {f"{key}_low": 100 * low, f"{key}_high": 100 * high}
    return numbers


def model_of(path: Path) -> str:
    """Says what was evaluated, as the file has it. Raises UserError for a file that is none of lm-eval."""
    given = (_read(path).get("config") or {}).get("model_args")
    if isinstance(given, str):
        given = dict(part.split("=", 1) for part in given.split(",") if "=" in part)
    return str(given.get("pretrained", "an unnamed model")) if isinstance(given, dict) else "an unnamed model"


def without_guessing(value: float, choices: int | None) -> float:
    """Rescales a share in [0, 1] so that what guessing gets is 0 and all is 1."""
    return value if choices is None else max(0.0, (value - 1 / choices) / (1 - 1 / choices))


def _read(path: Path) -> _Results:
    return checked(_RESULTS, read_json(path), f"{path}: no results of lm-eval 0.4 or later")


def _column(column: Column, files: Files, chat_template: bool, limited: bool) -> Value:
    if isinstance(column.choices, dict):
        names = list(column.choices)
    elif column.subtasks is None:
        names = [column.task]
    else:
        names = _leaves(column.task, files)
        if len(names) != column.subtasks:
            path = _only(column.task, files).path
            raise UserError(
                f"{path}: {column.task} has {len(names)} subtasks, and {column.title} is of {column.subtasks}"
            )
    for leaf in (leaf for name in names for leaf in _leaves(name, files)):
        path, content = _only(leaf, files)
        shots, items = content["n-shot"].get(leaf), (content.get("n-samples") or {}).get(leaf) or {}
        if shots != column.shots:
            raise UserError(f"{path}: {leaf} has {shots} shots, the leaderboard has {column.shots}; run it again so")
        if content.get("chat_template") and not chat_template:
            raise UserError(f"{path}: {leaf} was run under a chat template, and the leaderboard used none")
        part = (content.get("config") or {}).get("limit") is not None or items.get("original") != items.get("effective")
        if part and not limited:
            raise UserError(f"{path}: {leaf} was run on a part of its items (limit); run all of them")
    return _mean([_value(column, name, _only(name, files)) for name in names])


def _only(task: str, files: Files) -> _File:
    if task not in files:
        raise UserError(f"no file has results of {task}; run that task too, or name its file")
    return files[task]


def _leaves(task: str, files: Files, above: tuple[str, ...] = ()) -> list[str]:
    """Lists the tasks of a group, of groups in it too; of a task itself. `above`: the groups that it is in."""
    path, content = _only(task, files)
    if task in above:
        raise UserError(f"{path}: group_subtasks: {task} is a part of itself; mend it")
    parts = (content.get("group_subtasks") or {}).get(task) or []
    return [leaf for part in parts for leaf in _leaves(part, files, (*above, task))] or [task]


def _value(column: Column, name: str, file: _File) -> Value:
    """Reads a task's number; its error is at most that of the metrics' mean: the largest that lm-eval gives of one."""
    task, choices = file.content["results"][name], column.choices
    choices = choices[name] if isinstance(choices, dict) else choices
    for metric in column.metrics:
        if not _is_number(task.get(metric)):
            raise UserError(
                f"{file.path}: {name} has no number for {metric}; was it run with another version of the task?"
            )
    errors = [task.get(f"{metric}_stderr,{kind}") for metric, kind in (one.split(",") for one in column.metrics)]
    known = [float(error) for error in errors if _is_number(error)]
    value = without_guessing(sum(task[metric] for metric in column.metrics) / len(column.metrics), choices)
    slope = 1 if choices is None else 1 / (1 - 1 / choices)
    return Value(value, max(known) * slope if known else None)


def _mean(parts: Sequence[Value]) -> Value:
    errors = [part.error for part in parts if part.error is not None]
    error = math.sqrt(sum(one**2 for one in errors)) / len(parts) if len(errors) == len(parts) else None
    return Value(sum(part.value for part in parts) / len(parts), error)


def _is_number(value: Any) -> TypeGuard[float]:
    """A finite one, whose square is too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100
