"""Benchmarks of a report or a card: what was measured, and beside it what `published.yaml` knows of the same system."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Literal

import pandas as pd
import yaml
from pydantic import PositiveInt, TypeAdapter
from pydantic.dataclasses import dataclass

from src.evaluation.results import Result, headed, of_table, results
from src.evaluation.win_matrix import WinMatrix
from src.experiment.run import Run
from src.kernel.artifact import Node
from src.kernel.store import Store
from src.reporting.tables import DASH, Column, frame, literal, markdown, table_of

FILE = Path(__file__).with_name("published.yaml")
NOT_MEASURED = "not measured"
NOT_COMPARABLE = "not comparable"
"""Measured, and otherwise than what is published: the table of what was measured says how."""


@dataclass(frozen=True)
class Source:
    kind: Literal["paper", "card", "leaderboard"]
    cite: str
    date: str
    """Year and month, or `unknown`."""


@dataclass(frozen=True)
class Table:
    benchmark: str
    source: str
    """A name in `sources`."""
    measures: list[str]
    policies: dict[Literal["base"] | int, list[float | None]]
    """Values of the start policy and of iterations, one per measure; None: not published."""
    best_of: PositiveInt | None = None
    """Answers that a ranker chose from; None: one answer, as sampled."""
    note: str = ""

    @property
    def title(self) -> str:
        return f"{self.benchmark}, best of {self.best_of}" if self.best_of else self.benchmark


@dataclass(frozen=True)
class Published:
    system: str
    """Its name where it was published."""
    tables: list[Table]
    start: str = ""
    """The id of its start policy on the hub."""


@dataclass(frozen=True)
class _File:
    sources: dict[str, Source]
    experiments: dict[str, Published]
    """By the name in conf/experiment."""
    others: dict[str, Published]
    """Systems and ablations that are no experiment of ours."""


@lru_cache
def _file() -> _File:
    return TypeAdapter(_File).validate_python(yaml.safe_load(FILE.read_text()))


def published() -> dict[str, Published]:
    """Return what is published of each experiment."""
    return _file().experiments


def others() -> dict[str, Published]:
    """Return what is published of systems that are no experiment of ours, and of ablations."""
    return _file().others


def source_of(table: Table) -> Source:
    return _file().sources[table.source]


def published_tables(known: Published, ours: Sequence[Result], policies: Iterable[str]) -> str:
    """Write every published table with its source, and under it a row of each of our `policies` (`base`, `it1`, …)."""
    parts, policies = [f"Of {literal(known.system)}, as published:\n"], list(policies)
    for table in known.tables:
        source = source_of(table)
        date = "date unknown" if source.date == "unknown" else source.date
        cited = ", ".join(filter(None, (source.kind, source.cite, date, table.note)))
        digits = digits_of(table)
        rows = [
            [policy_title("base" if policy == "base" else f"it{policy}"), *(plain(value, digits) for value in values)]
            for policy, values in table.policies.items()
        ]
        rows += [[f"**here, {policy_title(policy)}**", *_our_cells(table, ours, policy)] for policy in policies]
        parts.append(f"{table.title} ({literal(cited)}):\n\n{markdown(frame(['policy', *table.measures], rows))}")
    return "\n".join(parts)


def _our_cells(table: Table, ours: Sequence[Result], policy: str) -> list[str]:
    """Write our numbers for a published table, where they are comparable with it."""
    one = of_table(ours, policy, table.benchmark, table.best_of)
    if one is None:
        names = [(each.policy, each.benchmark.title, each.best_of) for each in ours]
        otherwise = (policy, table.benchmark, table.best_of) in names
        return [NOT_COMPARABLE if otherwise else NOT_MEASURED] * len(table.measures)
    digits = {measure.title: measure.digits for measure in one.benchmark.measures}
    values = {title: one.value_of(title) for title in table.measures}
    return [NOT_MEASURED if value is None else plain(value, digits[title]) for title, value in values.items()]


def digits_of(table: Table) -> int:
    """Count the digits behind the point with which a table was published."""
    known = [value for values in table.policies.values() for value in values if value is not None and value < 1000]
    return max((len(repr(value).partition(".")[2]) for value in known), default=0)


def measured(ours: Sequence[Result]) -> dict[str, tuple[str, pd.DataFrame]]:
    """Return a title and a table, with one row per policy, of each benchmark that was measured."""
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
            title = headed(title, ", ".join(why))
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


def plain(value: float | None, digits: int) -> str:
    """Write a number as published tables do: 1855, 24.79, or a dash."""
    return DASH if value is None else f"{value:.{0 if value >= 1000 else digits}f}"


def results_of(run: Run, nodes: Iterable[Node], store: Store) -> list[Result]:
    """Read the benchmarks of a run. In an experiment, those of a stand-in are marked as not comparable."""
    matrices = {name: one for name, one in run.benchmark.items() if isinstance(one, WinMatrix)}
    judged = {name: replace(one, ranker=one.ranker or run.judge) for name, one in matrices.items()}
    return results(run.benchmark | judged, nodes, store, bool(run.experiment) and is_stand_in(run))


def is_stand_in(run: Run) -> bool:
    """Say whether the run starts from another checkpoint than the published system, as a rehearsal does.

    Without a published one, from another than `model.id` names. A local copy is in a folder of its name, whose content
    is not looked at.
    """
    known = published().get(run.experiment or "")
    wanted = known.start if known else str(run.model.id)
    repo = str(getattr(run.model, "repo", "" if known else run.model.id))  # a package has none
    local = repo[:1] in ("/", ".", "~") and repo.rpartition("/")[2] == wanted.rpartition("/")[2]
    return run.rehearsed or not (local or repo == wanted or repo.endswith(f"/{wanted}"))
