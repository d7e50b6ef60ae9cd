"""The interface of a benchmark, what it may ask of a run, and files that somebody else wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from src.data.source import Source, read_columns
from src.generation.engine import Sampling
from src.generation.stage import Generate
from src.kernel.artifact import Job, Node, Stage
from src.kernel.config import Device, UserError
from src.kernel.rows import Row, prompt_id
from src.ranking.stage import Ranker

RESERVED = re.compile(r"base|null|held_out|ranker|it\d+|generate|rank|train|evaluate|trial|samples|plots|report|policy"
                      r"|prompts|responses|own_responses|outside_.*|ranking|pairs|reference|divergence|answers"
                      r"|second|joint_answers|(second_)?(answers_ranking|joint_ranking|evaluation)")  # fmt: skip
"""Names that a benchmark cannot have: artifacts, iterations and W&B runs have them."""
SCORES = "scores"
"""`<policy>/<benchmark>/scores` is what reports, cards, W&B and `compare` read: `metrics.json`, and a row an item."""
SEED = 950
"""Sampling seed of benchmarks' answers, within a run's seeds."""

Numbers = dict[str, float | None]


class Policy(NamedTuple):
    """A policy of the run with its answers to the held-out prompts."""

    policy: Node
    answers: Node
    rankings: Mapping[str, Node | None]
    """By judge, as in `Planner.judges`; None where its scores cannot be compared between separate rankings."""


Policies = Mapping[str, Policy]
"""`base`, `it1`, `it2`, … in this order."""


class Machine(NamedTuple):
    """The part of the hardware that evaluations use; no result depends on it beyond rounding."""

    device: Device
    head_chunk: int
    """Answer tokens that meet the LM head at a time."""
    batch_answers: int
    """Answers scored at a time."""


class Planner(Protocol):
    """The part of a run that an evaluation may use."""

    @property
    def machine(self) -> Machine: ...
    @property
    def judge(self) -> Ranker: ...
    @property
    def judges(self) -> Mapping[str, Ranker]: ...
    @property
    def held_out(self) -> Any: ...
    @property
    def seed(self) -> int: ...
    @property
    def experiment(self) -> str | None: ...
    @property
    def model(self) -> Any: ...

    def seed_of(self, offset: int) -> int:
        """Return the sampling seed number `offset` of the run's 1,000."""
        ...

    def node(
        self,
        name: str,
        stage: Stage,
        inputs: tuple[Node, ...] = (),
        rows: int = 0,
        work: int | None = 0,
        kind: str = "",
        by: str = "",
        job: Job = "setup",
    ) -> Node: ...

    def generate(self, sampling: Sampling, seed: int, key: str) -> Generate:
        """Sample with the run's engine; `key` is the config key of the sampling, for messages."""
        ...

    def rank(self, name: str, responses: Node, rows: int, answers: int, ranker: Ranker | None = None) -> Node:
        """Compare `answers` answers to each prompt, a row, by `ranker`, None: the run's."""
        ...

    def answer(self, name: str, policy: Node, prompts: Node, turn: int) -> Policy:
        """Give one held-out answer per prompt, from a sampling seed that nothing else uses."""
        ...


class Measure(NamedTuple):
    """A number in the `metrics.json` of a benchmark's scores."""

    key: str
    """`<key>_low` and `<key>_high` are beside it where it has an interval."""
    title: str
    """Its name in published tables."""
    digits: int = 2
    """Digits behind the point."""


@runtime_checkable
class Benchmark(Protocol):
    """A further evaluation of policies, chosen by `benchmark=`; its name in the config is the key of a dict."""

    @property
    def title(self) -> str:
        """Its name in published tables."""
        ...

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The numbers that tables show, the main one first."""
        ...

    def nodes(self, name: str, run: Planner, policies: Policies) -> Iterator[Node]:
        """Yield artifacts called `<policy>/<name>/…`; those that end in SCORES hold the numbers.

        Raises UserError for what the run lacks.
        """
        ...


class Scored(NamedTuple):
    """The numbers of one model, from files that others made."""

    label: str
    """Whose outputs, and who judged them."""
    numbers: Numbers
    departs: str | None = None
    """Why, by what the files say, no published number is comparable; None: nothing speaks against it."""


@runtime_checkable
class Scoring(Benchmark, Protocol):
    """A benchmark that can compute its numbers without a run, from files of judgments or of lm-eval's results."""

    def score_files(self, name: str, paths: Sequence[Path], confidence: float) -> list[Scored]:
        """Score each model in the files. `name`: of the benchmark in the config. Raises UserError naming a file."""
        ...


def chosen(policies: Policies, of: list[str] | None, key: str) -> dict[str, Policy]:
    """Pick the policies named by `of`, all for None. Raises UserError, naming the config's `key`, for other names."""
    for name in of or []:
        if name not in policies:
            raise UserError(f"{key}: this run has no policy {name}; there are {', '.join(policies)}")
    return {name: policy for name, policy in policies.items() if of is None or name in of}


def version_of(package: str) -> str:
    """Return the name and version of a package. Raises UserError where it is not installed."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        raise UserError(f"benchmark: needs {package}; `make install` brings it, or pip install {package}") from None


def prompt_row(texts: Sequence[str], source: str) -> Row:
    """Return a PROMPTS row of what user and assistant say in turn."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"prompt_id": prompt_id(messages), "messages": messages, "source": source, "checks": "[]"}


# Files that somebody else wrote -------------------------------------------------------------------------------------

T = TypeVar("T")


def read_table(form: type[T], source: Source) -> Iterator[tuple[str, T]]:
    """Yield the place of each row, and the row as a TypedDict `form`. Raises UserError for a wrong one."""
    adapter = TypeAdapter(form)
    for place, row in read_columns(source, tuple(form.__annotations__)):
        try:
            yield place, adapter.validate_python(row, strict=True)
        except ValidationError as error:
            raise _mistake(error, place) from None


def read_json(form: Any, path: Path) -> Any:
    """Return the value of type `form` in a JSON file. Raises UserError like `read_table`; rows are counted from 0."""
    try:
        return TypeAdapter(form).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        raise _mistake(error, path) from None


def _mistake(error: ValidationError, place: object) -> UserError:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    value = "" if first["type"] in ("missing", "json_invalid") else f" (got {first['input']!r:.80})"
    return UserError(f"{place}: {f'{key}: ' if key else ''}{first['msg']}{value}")
