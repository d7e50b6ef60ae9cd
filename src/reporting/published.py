"""Benchmarks of a report or a card: what was measured, and beside it what `published.yaml` knows of the same system."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import yaml
from pydantic import Field, PositiveInt, TypeAdapter
from pydantic.dataclasses import dataclass

from src.evaluation.results import Result, of_table, results
from src.experiment.graph import START
from src.experiment.run import Run
from src.kernel.artifact import Node
from src.kernel.record import read_record
from src.kernel.store import Store
from src.reporting.tables import DASH, Column, frame, literal, markdown, table_of

FILE = Path(__file__).with_name("published.yaml")
UNKNOWN = "unknown"
NOT_MEASURED = "not measured"
NOT_COMPARABLE = "not comparable"
"""Measured, and otherwise than what is published: the table of what was measured says how."""


@dataclass(frozen=True)
class Source:
    kind: Literal["paper", "card", "leaderboard"]
    cite: str
    date: Annotated[str, Field(pattern=rf"^(\d{{4}}-\d{{2}}|{UNKNOWN})$")]
    """Year and month, or `unknown`."""


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


@lru_cache
def _file() -> _File:
    return TypeAdapter(_File).validate_python(yaml.safe_load(FILE.read_text()))


def published() -> dict[str, Published]:
    """Returns what is published of each experiment."""
    return _file().experiments


def others() -> dict[str, Published]:
    """Returns what is published of systems that no experiment is, and of ablations."""
    return _file().others


def source_of(table: Table) -> Source:
    return _file().sources[table.source]


def published_table(table: Table, rows: Iterable[Sequence[str]] = ()) -> str:
    """Writes a published table with its source, as many digits as were published, and `rows` of ours under it."""
    source = source_of(table)
    date = f"date {UNKNOWN}" if source.date == UNKNOWN else source.date
    cited = ", ".join(filter(None, (source.kind, source.cite, date, table.note)))
    known = [value for values in table.policies.values() for value in values if value is not None and value < 1000]
    digits = max((len(repr(value).partition(".")[2]) for value in known), default=0)
    theirs = [
        [policy_title("base" if policy == "base" else f"it{policy}"), *(_plain(value, digits) for value in values)]
        for policy, values in table.policies.items()
    ]
    return f"{table.title} ({literal(cited)}):\n\n{markdown(frame(['policy', *table.measures], [*theirs, *rows]))}"


def published_tables(known: Published, ours: Sequence[Result], policies: Iterable[str]) -> str:
    """Writes every published table, with a row of each of our `policies` (`base`, `it1`, …) under it."""
    parts, policies = [f"Of {literal(known.system)}, as published:\n"], list(policies)
    for table in known.tables:
        rows = [[f"**here, {policy_title(policy)}**", *_our_cells(table, ours, policy)] for policy in policies]
        parts.append(published_table(table, rows))
    return "\n".join(parts)


def _our_cells(table: Table, ours: Sequence[Result], policy: str) -> list[str]:
    """Writes our numbers for a published table, where they are comparable with it."""
    one = of_table(ours, policy, table.benchmark, table.best_of)
    if one is None:
        of_policy = [each for each in ours if each.policy == policy]
        return [lacking(of_policy, table.benchmark, table.best_of)] * len(table.measures)
    digits = {measure.title: measure.digits for measure in one.benchmark.measures}
    values = {title: one.said(title) for title in table.measures}
    return [NOT_MEASURED if value is None else _plain(value, digits[title]) for title, value in values.items()]


def lacking(ours: Sequence[Result], benchmark: str, best_of: int | None) -> str:
    """Says why there is no number of ours to hold against published ones."""
    otherwise = any(one.benchmark.title == benchmark and one.best_of == best_of for one in ours)
    return NOT_COMPARABLE if otherwise else NOT_MEASURED


def measured(ours: Sequence[Result]) -> dict[str, tuple[str, pd.DataFrame]]:
    """Returns a title and a table, with a row a policy, of each benchmark that was measured."""
    tables = {}
    for name, group in groupby(ours, lambda one: one.name):
        rows, reasons = list(group), dict[str, list[str]]()
        benchmark, best_of = rows[0].benchmark, rows[0].best_of
        for one in rows:
            if one.departs:
                reasons.setdefault(one.departs, []).append(policy_title(one.policy))
        title = f"{benchmark.title}, best of {best_of}" if best_of else benchmark.title
        if reasons:
            every = len(rows)
            why = [reason + (f" ({', '.join(of)})" if len(of) < every else "") for reason, of in reasons.items()]
            title += f" — not comparable with published numbers: {', '.join(why)}"
        columns = [Column(measure.title, measure.key, measure.digits) for measure in benchmark.measures]
        index = [policy_title(one.policy) for one in rows]
        numbers = pd.DataFrame([one.numbers for one in rows], index=index)
        tables[name] = title, table_of(numbers, [*columns, Column("items", "items", 0)]).replace(DASH, NOT_MEASURED)
    return tables


def measured_tables(ours: Sequence[Result]) -> str:
    tables = measured(ours).items()
    return "\n".join(f"{title} (`benchmark.{name}`):\n\n{markdown(table)}" for name, (title, table) in tables)


def policy_title(policy: str) -> str:
    return "start policy" if policy == "base" else f"iteration {policy.removeprefix('it')}"


def _plain(value: float | None, digits: int) -> str:
    """Writes a number as published tables do: 1855, 24.79, or a dash."""
    return DASH if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.{digits}f}"


def comparable_results(run: Run, nodes: Iterable[Node], store: Store) -> list[Result]:
    """Reads the benchmarks of a run. In an experiment, results of stand-ins are marked as not comparable.

    Raises UserError for files that cannot be read.
    """
    by_name = {node.name: node for node in nodes}
    ours, stand_ins = results(run.benchmark, by_name.values(), store, run.rehearsed), set[str]()
    if not run.experiment:
        return ours
    for policy in {one.policy for one in ours}:
        node = by_name[START if policy == "base" else f"{policy}/policy"]
        if store.has(node):  # it may be cleaned away once it was measured
            folder = store.path(node)
            if stand_in(run, folder, read_record(folder), trained=policy != "base"):
                stand_ins.add(policy)
    return [one._replace(rehearsed=one.rehearsed or one.policy in stand_ins) for one in ours]


def stand_in(run: Run, folder: Path, record: dict[str, Any], trained: bool) -> int | None:
    """Counts the parameters of a policy that is of another size than the published start policy, such as a rehearsal's.

    Returns None for one that is not, or whose size is not known.
    """
    from huggingface_hub import parse_local_safetensors_file_metadata
    from huggingface_hub.errors import SafetensorsParsingError

    sizes = {name: file["bytes"] for name, file in record["files"].items() if name.endswith(".safetensors")}
    if run.model.weights is None:
        return None
    if trained:
        parameters = sum(sizes.values()) // (4 if run.train.save_dtype == "float32" else 2)
    else:  # a checkpoint by somebody else may have any precision
        try:
            heads = [parse_local_safetensors_file_metadata(folder / name) for name in sizes]
        except (OSError, SafetensorsParsingError):
            return None
        parameters = sum(sum(head.parameter_count.values()) for head in heads)
    alike = abs(parameters - run.model.weights) < 0.1 * run.model.weights
    return parameters if parameters and not alike else None
