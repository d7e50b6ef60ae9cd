"""What a benchmark is, what it may ask of a run, and the numbers of a run's benchmarks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from src.generation.engine import Sampling
from src.generation.stage import Generate
from src.kernel.artifact import Job, Node, Stage, place_of
from src.kernel.config import CONF, Device, UserError, fingerprint
from src.kernel.rows import read_metrics
from src.kernel.store import Store
from src.pairing.win_probability import Estimator
from src.ranking.stage import Ranker

RESERVED = re.compile(r"base|null|held_out|ranker|it\d+|generate|rank|train|evaluate|trial|samples|plots|report|policy"
                      r"|prompts|responses|own_responses|outside_.*|ranking|pairs|reference|evaluation|divergence"
                      r"|answers|answers_ranking|joint_answers|joint_ranking")  # fmt: skip
"""Names that a benchmark cannot have: they are those of artifacts, iterations and W&B runs."""
SCORES = "scores"
"""`<policy>/<benchmark>/scores` is what reports, cards, W&B and `compare` read: `metrics.json`, and a row an item."""
SEED = 950
"""Sampling seed of benchmarks' answers, within a run's seeds."""

Numbers = dict[str, float | None]


class Policy(NamedTuple):
    """A policy of the run with its answers to the held-out prompts."""

    policy: Node
    answers: Node
    ranking: Node | None
    """None where the ranker's scores cannot be compared between answers ranked apart."""


Policies = Mapping[str, Policy]
"""`base`, `it1`, `it2`, … in this order."""


class Machine(NamedTuple):
    """The part of the hardware that evaluations use; no result depends on it beyond rounding."""

    device: Device
    devices: int
    """Devices of one node."""
    head_chunk: int
    """Answer tokens that meet the LM head at a time."""
    batch_answers: int
    """Answers scored at a time."""


class Planner(Protocol):
    """What an evaluation may ask of a run."""

    @property
    def confidence(self) -> float: ...
    @property
    def held_out_prompts(self) -> int: ...
    @property
    def machine(self) -> Machine: ...
    @property
    def estimator(self) -> Estimator: ...
    @property
    def ranker(self) -> Ranker: ...
    @property
    def seed(self) -> int: ...
    @property
    def experiment(self) -> str | None: ...
    @property
    def model_name(self) -> str: ...

    def seed_of(self, offset: int) -> int:
        """The sampling seed number `offset` of the run's 1,000."""
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

    def generate(self, sampling: Sampling, seed: int) -> Generate: ...

    def rank(self, name: str, responses: Node, prompts: int, answers: int) -> Node:
        """Compares `answers` answers to each of `prompts` prompts by the run's ranker."""
        ...

    def answer(self, name: str, policy: Node, prompts: Node, turn: int) -> Policy:
        """Gives one held-out answer a prompt, from a sampling seed that nothing else uses."""
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
        """The main one first."""
        ...

    @property
    def published(self) -> str | None:
        """The file of conf/benchmark that measures as the published numbers were; None: nothing is published."""
        ...

    @property
    def no_matter(self) -> tuple[str, ...]:
        """Keys in which it may differ from that file: where data lie, which policies are measured."""
        ...

    def nodes(self, name: str, run: Planner, policies: Policies) -> Iterator[Node]:
        """Artifacts called `<policy>/<name>/…`; those that end in SCORES hold the numbers.

        Raises UserError for what the run lacks.
        """
        ...


@runtime_checkable
class Scoring(Protocol):
    """A benchmark that can compute its numbers without a run, from what judges or lm-eval have already said."""

    measures: tuple[Measure, ...]
    scored_by: ClassVar[tuple[str, ...]]
    """Its keys that `score_files` goes by."""

    def score_files(self, name: str, paths: Sequence[Path], confidence: float) -> dict[str, Numbers]:
        """What was scored -> its numbers. `name`: of the benchmark in the config. Raises UserError naming a file."""
        ...


def chosen(policies: Policies, of: list[str] | None, key: str) -> dict[str, Policy]:
    """Picks the policies named by `of`, all for None. Raises UserError, naming the config's `key`, for other names."""
    for name in of or []:
        if name not in policies:
            raise UserError(f"{key}: this run has no policy {name}; there are {', '.join(policies)}")
    return {name: policy for name, policy in policies.items() if of is None or name in of}


# Beside published numbers -------------------------------------------------------------------------------------------


def departs(benchmark: Benchmark) -> str | None:
    """Says why numbers of `benchmark` cannot be held against published ones; None: they can."""
    if benchmark.published is None:
        return "nothing is published of it"
    ours, theirs = dict(_leaves(fingerprint(benchmark))), _shipped(benchmark.published)
    places = {place for place in ours | theirs if ours.get(place) != theirs.get(place)}
    keys = sorted(".".join(place) for place in places if not {*place} & {*benchmark.no_matter})
    return f"{', '.join(keys)} not as in conf/benchmark/{benchmark.published}.yaml" if keys else None


@cache
def _shipped(name: str) -> dict[tuple[str, ...], Any]:
    import hydra
    from omegaconf import OmegaConf

    file = OmegaConf.load(CONF / "benchmark" / f"{name}.yaml")
    root = OmegaConf.create({"mirror": "", "benchmark": file})
    return dict(_leaves(fingerprint(hydra.utils.instantiate(root.benchmark, _convert_="all"))))


def _leaves(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields the keys that lead to each value that is neither a dict nor a list, and that value."""
    if not isinstance(value, dict | list):
        yield place, value
        return
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(inner, (*place, str(name)))


class Result(NamedTuple):
    """The numbers of one benchmark, of one policy."""

    name: str
    """Name of the benchmark in the config."""
    benchmark: Benchmark
    policy: str
    """`base`, `it1`, …"""
    numbers: Numbers
    rehearsed: bool = False
    """Its policy is a stand-in: of a rehearsal, or of another size than published."""

    @property
    def items(self) -> int:
        return int(self.numbers.get("items") or 0)

    @property
    def best_of(self) -> int | None:
        return getattr(self.benchmark, "best_of", None)

    @property
    def departs(self) -> str | None:
        """Why no published number is comparable; None: it is."""
        if self.rehearsed:
            return "models of another size than published"
        if why := departs(self.benchmark):
            return why
        items = self.numbers.get("items")
        return None if self.numbers.get("official_items", items) == items else "other items, baseline or annotator"

    def interval(self, measure: Measure) -> tuple[float, float] | None:
        low, high = (self.numbers.get(f"{measure.key}_{side}") for side in ("low", "high"))
        return None if low is None or high is None else (low, high)

    def said(self, title: str) -> float | None:
        """The value that published tables call `title`; None: not measured."""
        keys = (measure.key for measure in self.benchmark.measures if measure.title == title)
        return next((self.numbers.get(key) for key in keys), None)


def results(
    benchmarks: Mapping[str, Benchmark], nodes: Iterable[Node], store: Store, rehearsed: bool = False
) -> list[Result]:
    """Reads what is made, by benchmark and then by policy. Raises UserError for files that cannot be read."""
    order = {name: place for place, name in enumerate(benchmarks)}
    rows = []
    for node in nodes:
        policy, name, stage = node.place
        if stage == SCORES and name and name in benchmarks and store.has(node):
            rows.append(Result(name, benchmarks[name], policy, read_metrics(store.path(node)), rehearsed))
    return sorted(rows, key=lambda one: (order[one.name], place_of(f"{one.policy}/").iteration or 0))


def of_table(found: Iterable[Result], policy: str, benchmark: str, best_of: int | None) -> Result | None:
    """Finds the one that a published table of `benchmark` can be held against; None: not measured."""
    return next(
        (
            one
            for one in found
            if (one.policy, one.benchmark.title, one.best_of) == (policy, benchmark, best_of) and one.departs is None
        ),
        None,
    )
