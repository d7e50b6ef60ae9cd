"""A column of a leaderboard: a task of lm-eval; and result files of lm-eval as the published numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired

from pydantic import NonNegativeInt, PositiveInt
from typing_extensions import TypedDict

from src.evaluation.benchmark import read_json
from src.evaluation.statistics import normal_interval
from src.kernel.config import Label, UserError, config, matching

AVERAGE = "average"
MetricFilter = Annotated[str, matching("[^,]+,[^,]+", "wants metric,filter, as lm-eval writes them")]


@config
class Column:
    """A column of a leaderboard: a task or a group of lm-eval."""

    key: Label
    """Its name in metrics.json."""
    title: str
    """The title in published tables."""
    task: Label
    """A task or a group of lm-eval."""
    shots: NonNegativeInt
    """Solved examples before each question."""
    metric: MetricFilter
    """The name that lm-eval writes, `metric,filter`."""
    subtasks: PositiveInt | None = None
    """The number of subtasks; the column is their unweighted mean; null: the group's own number."""


Settings = dict[str, Any] | None
_File = TypedDict(
    "_File",
    {"results": dict[str, dict[str, Any]], "n-shot": NotRequired[dict[str, Any]], "config": NotRequired[Settings],
     "group_subtasks": NotRequired[dict[str, list[str]] | None], "config_general": NotRequired[Settings],
     "n-samples": NotRequired[dict[str, dict[str, int]] | None], "chat_template": NotRequired[Any],
     "system_instruction": NotRequired[Any], "fewshot_as_multiturn": NotRequired[Any], "model_name": NotRequired[Any]},
)  # fmt: skip
"""The parts that are read of a file of lm-eval 0.4, which has `n-shot`, of 0.3, or of the leaderboard's archive."""
NOT_THERE = ("chat_template", "use_chat_template", "system_instruction", "fewshot_as_multiturn", "gen_kwargs",
             "description_dict")  # fmt: skip
_TASKS = {"arc:challenge": "arc_challenge", "truthfulqa:mc": "truthfulqa_mc2", "truthfulqa_mc": "truthfulqa_mc2"}
_METRICS = {"truthfulqa_mc2": {"mc2": "acc,none", "mc2_stderr": "acc_stderr,none"},
            "gsm8k": {"acc": "exact_match,strict-match", "acc_stderr": "exact_match_stderr,strict-match"}}  # fmt: skip
"""Names before lm-eval 0.4 -> those of 0.4; of other metrics `<name>,none`."""


class Results(NamedTuple):
    """The results of one model, from several files."""

    place: str
    """The files, for messages."""
    model: str
    values: dict[str, dict[str, Any]]
    """Task or group -> `metric,filter` -> value."""
    shots: dict[str, Any]
    groups: dict[str, list[str]]


def read_results(paths: Iterable[Path], chat_template: bool, limited: bool = False) -> Results:
    """Read result files. `limited`: a part of a task's items will do.

    Raises UserError, naming the file, for two models, a task in two files, a part of the items, or, where the
    leaderboard had none, a chat template, system prompt or settings of the sampling.
    """
    models, values, shots, groups = dict[str, Path](), dict[str, dict[str, Any]](), {}, {}
    paths = list(paths)
    for path in paths:
        file: _File = read_json(_File, path)
        file = file if "n-shot" in file else _renamed(file)
        settings = file.get("config") or {}
        named = [str(name) for name in (file.get("model_name"), settings.get("model_args")) if name]
        models.setdefault(", ".join(named) or "an unnamed model", path)
        if len(models) > 1:
            raise UserError(f"{path}: is of {[*models][1]}, others of {[*models][0]}; score one model at a time")
        more = [key for key in NOT_THERE if file.get(key) or settings.get(key)]
        if more and not chat_template:
            raise UserError(f"{path}: was run with {', '.join(more)}, and the leaderboard used none")
        part = any(one.get("effective") != one.get("original") for one in (file.get("n-samples") or {}).values())
        if (part or any(settings.get(key) is not None for key in ("limit", "max_samples"))) and not limited:
            raise UserError(f"{path}: was run on a part of the items (limit); run all of them")
        if twice := file["results"].keys() & values.keys():
            raise UserError(f"{path}: {min(twice)} is in another file too; leave one of them out")
        values |= file["results"]
        shots |= file.get("n-shot") or {}
        groups |= file.get("group_subtasks") or {}
    return Results(", ".join(map(str, paths)), next(iter(models)), values, shots, groups)


def _renamed(file: _File) -> _File:
    """Return a file of lm-eval 0.3, or of the archive (tasks `harness|<task>|<shots>`), as 0.4 would write it."""
    settings = file.get("config_general") or file.get("config") or {}
    results, all_shots, mmlu = dict[str, dict[str, Any]](), dict[str, Any](), list[str]()
    for key, numbers in file["results"].items():
        name, _, shots = key.removeprefix("harness|").partition("|")
        task = _TASKS.get(name, name.replace("hendrycksTest-", "mmlu_"))
        names = _METRICS.get(task, {})
        results[task] = {names.get(metric, f"{metric},none"): value for metric, value in numbers.items()}
        all_shots[task] = int(shots) if shots.isdecimal() and len(shots) < 5 else settings.get("num_fewshot")
        if task.startswith("mmlu_"):
            mmlu.append(task)
    more: dict[str, Any] = {"config": settings, "model_name": settings.get("model_name"), "n-shot": all_shots}
    return _File(results=results, group_subtasks={"mmlu": mmlu} if mmlu else {}, **more)


def score_columns(results: Results, columns: Sequence[Column], confidence: float) -> dict[str, float]:
    """Compute a percentage a column and their `average`, with `_low` and `_high` where standard errors are known.

    Raises UserError for a task that is missing, of other shots, or without a share in [0, 1].
    """
    values = {column.key: _column(column, results) for column in columns}
    values[AVERAGE] = _mean(list(values.values()))
    numbers: dict[str, float] = {}
    for key, (value, error) in values.items():
        numbers[key] = 100 * value
        if error is not None:
            low, high = normal_interval(value, error, confidence, most=1.0)
            numbers |= {f"{key}_low": 100 * low, f"{key}_high": 100 * high}
    return numbers


class Value(NamedTuple):
    value: float
    """In [0, 1]."""
    error: float | None
    """Standard error; None: not known."""


def _column(column: Column, results: Results) -> Value:
    names = _leaves(column.task, results.groups) if column.subtasks else [column.task]
    for name in names:
        if name not in results.values:
            raise UserError(f"{results.place}: no results of {name}; run that task too, or name its file")
        for leaf in _leaves(name, results.groups):
            if (shots := results.shots.get(leaf)) != column.shots:
                raise UserError(f"{results.place}: {leaf} has {shots} shots, the leaderboard {column.shots}; run it so")
    if column.subtasks not in (None, len(names)):
        wanted = f"and {column.title} is of {column.subtasks}"
        raise UserError(f"{results.place}: {column.task} has {len(names)} subtasks, {wanted}")
    return _mean([_value(column, name, results) for name in names])


def _leaves(task: str, groups: Mapping[str, list[str]], depth: int = 20) -> list[str]:
    """Return the tasks of a group, of groups in it too, at most `depth` deep; of a task itself."""
    parts, others = groups.get(task) or [], {**groups, task: []}  # no group is a part of itself
    return [leaf for part in parts[: len(parts) * depth] for leaf in _leaves(part, others, depth - 1)] or [task]


def _value(column: Column, name: str, results: Results) -> Value:
    """Read a task's number and its standard error."""
    numbers = results.values[name]
    value, error = (_share(numbers.get(key)) for key in (column.metric, column.metric.replace(",", "_stderr,")))
    if value is None:
        what = f"{name} has no number from 0 to 1 for {column.metric}"
        raise UserError(f"{results.place}: {what}; was it run with another version of it?")
    return Value(value, error)


def _share(value: Any) -> float | None:
    """Return a number in [0, 1]; None for anything else."""
    return float(value) if type(value) in (int, float) and 0 <= value <= 1 else None


def _mean(parts: Sequence[Value]) -> Value:
    errors = [part.error for part in parts if part.error is not None]
    error = math.sqrt(sum(one**2 for one in errors)) / len(parts) if len(errors) == len(parts) else None
    return Value(sum(part.value for part in parts) / len(parts), error)
