"""Result files of lm-eval 0.4 as the numbers of a leaderboard."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from src.evaluation.open_llm.columns import Column, slope, without_guessing
from src.kernel.config import UserError

AVERAGE = "average"
Numbers = dict[str, float]


class _Form(BaseModel):
    """What is read of a file."""

    results: dict[str, dict[str, Any]]
    shots: dict[str, Any] = Field(alias="n-shot")
    group_subtasks: dict[str, list[str]] | None = None
    samples: dict[str, dict[str, Any]] | None = Field(None, alias="n-samples")
    config: dict[str, Any] | None = None


class Found(NamedTuple):
    """A task in a file."""

    path: Path
    told: dict[str, Any]
    """The whole file."""

    def number(self, task: str, metric: str) -> float:
        """Raises UserError where the file has none."""
        value = self.told["results"][task].get(metric)
        if isinstance(value, bool) or not _is_number(value):
            raise UserError(
                f"{self.path}: {task} has no number for {metric}; was it run with another version of the task?"
            )
        return float(value)

    def error(self, task: str, metrics: Sequence[str]) -> float | None:
        """Standard error of the mean of these metrics, at most: the largest that lm-eval tells of one of them."""
        names = [f"{name}_stderr,{kind}" for name, kind in (metric.split(",") for metric in metrics)]
        known = [self.told["results"][task].get(name) for name in names]
        numbers = [float(one) for one in known if _is_number(one)]
        return max(numbers) if numbers else None


class Value(NamedTuple):
    value: float
    """In [0, 1]."""
    error: float | None
    """Standard error; None: not told."""


def score_files(
    paths: Iterable[Path], columns: Sequence[Column], chat_template: bool, confidence: float, limited: bool = False
) -> Numbers:
    """A percentage a column and their `average`, with `_low` and `_high` where lm-eval tells a standard error.

    `limited`: a part of a task's items will do.

    Raises UserError for a task that is missing, in two files, of other shots, of a part of its items, or, where the
    leaderboard had none, under a chat template; it names the file.
    """
    found = _tasks(paths)
    values = {column.key: _column(column, found, chat_template, limited) for column in columns}
    return _percentages(values, confidence)


def _column(column: Column, found: dict[str, list[Found]], chat_template: bool, limited: bool) -> Value:
    names = _subtasks(column, found)
    leaves = [leaf for name in names for leaf in _leaves(name, found)]
    for leaf in leaves:
        file = _only(leaf, found)
        _check(column, leaf, file, chat_template)
        if not limited:
            _check_whole(leaf, file)
    parts = [_value(column, name, _only(name, found)) for name in names]
    errors = [part.error for part in parts if part.error is not None]
    error = math.sqrt(sum(one**2 for one in errors)) / len(parts) if len(errors) == len(parts) else None
    return Value(sum(part.value for part in parts) / len(parts), error)


def read(path: Path) -> dict[str, Any]:
    """A file of lm-eval. Raises UserError for another one."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    try:
        _Form.model_validate(told, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "file"
        raise UserError(
            f"{path}: no results of lm-eval 0.4 or later, which have `results` and `n-shot` ({place}: {first['msg']})"
        ) from None
    return told


def _is_number(value: Any) -> bool:
    """A finite one, whose square is too."""
    return isinstance(value, int | float) and abs(value) < 1e100


def model_of(path: Path) -> str:
    """What was evaluated, as the file says. Raises UserError like `read`."""
    given = (read(path).get("config") or {}).get("model_args")
    if isinstance(given, str):
        given = dict(part.split("=", 1) for part in given.split(",") if "=" in part)
    return str(given.get("pretrained", "an unnamed model")) if isinstance(given, dict) else "an unnamed model"


def _tasks(paths: Iterable[Path]) -> dict[str, list[Found]]:
    """Task or group -> the files that have it, and what those say."""
    found: dict[str, list[Found]] = {}
    for path in paths:
        told = read(path)
        for task in told["results"]:
            found.setdefault(task, []).append(Found(path, told))
    return found


def _only(task: str, found: dict[str, list[Found]]) -> Found:
    files = found.get(task, [])
    if not files:
        raise UserError(f"no file has results of {task}; run that task too, or name its file")
    if len(files) > 1:
        raise UserError(f"{files[1].path}: {task} is in {files[0].path} too; leave one of them out")
    return files[0]


def _leaves(task: str, found: dict[str, list[Found]], above: tuple[str, ...] = ()) -> list[str]:
    """The tasks of a group, of groups in it too; of a task itself. `above`: the groups that it is in."""
    file, told = _only(task, found)
    if task in above:
        raise UserError(f"{file}: group_subtasks: {task} is a part of itself; mend it")
    parts = (told.get("group_subtasks") or {}).get(task) or []
    return [leaf for part in parts for leaf in _leaves(part, found, (*above, task))] or [task]


def _subtasks(column: Column, found: dict[str, list[Found]]) -> list[str]:
    """What the column averages."""
    if isinstance(column.choices, dict):
        return list(column.choices)
    if column.subtasks is None:
        return [column.task]
    names = _leaves(column.task, found)
    if len(names) != column.subtasks:
        file = _only(column.task, found).path
        raise UserError(f"{file}: {column.task} has {len(names)} subtasks, and {column.title} is of {column.subtasks}")
    return names


def _value(column: Column, name: str, found: Found) -> Value:
    choices = column.choices[name] if isinstance(column.choices, dict) else column.choices
    raw = sum(found.number(name, metric) for metric in column.metrics) / len(column.metrics)
    error = found.error(name, column.metrics)
    return Value(without_guessing(raw, choices), None if error is None else error * slope(choices))


def _check(column: Column, leaf: str, found: Found, chat_template: bool) -> None:
    told = found.told
    shots = told["n-shot"].get(leaf)
    if shots != column.shots:
        raise UserError(f"{found.path}: {leaf} has {shots} shots, the leaderboard has {column.shots}; run it again so")
    if told.get("chat_template") and not chat_template:
        raise UserError(f"{found.path}: {leaf} was run under a chat template, and the leaderboard used none")


def _check_whole(leaf: str, found: Found) -> None:
    told = found.told
    count = (told.get("n-samples") or {}).get(leaf) or {}
    if (told.get("config") or {}).get("limit") is not None or count.get("original") != count.get("effective"):
        raise UserError(f"{found.path}: {leaf} was run on a part of its items (limit); run all of them")


def _percentages(values: dict[str, Value], confidence: float) -> Numbers:
    from scipy import stats

    z = float(stats.norm.ppf((1 + confidence) / 2))
    errors = [one.error for one in values.values()]
    mean = sum(one.value for one in values.values()) / len(values)
    spread = None if None in errors else math.sqrt(sum(one**2 for one in errors if one is not None)) / len(values)
    numbers: Numbers = {}
    for key, (value, error) in (values | {AVERAGE: Value(mean, spread)}).items():
        numbers[key] = 100 * value
        if error is not None:
            low, high = max(0.0, value - z * error), min(1.0, value + z * error)
            numbers |= {f"{key}_low": 100 * low, f"{key}_high": 100 * high}
    return numbers
