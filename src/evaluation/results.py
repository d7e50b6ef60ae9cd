"""The numbers of a run's benchmarks, and whether they can stand beside published ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from src.evaluation.benchmark import SCORES, Benchmark, Numbers
from src.kernel.artifact import Node
from src.kernel.config import CONF, fingerprint, leaves
from src.kernel.rows import read_metrics
from src.kernel.store import Store
from src.modeling.endpoint import ELSEWHERE

PUBLISHED = {"AlpacaEval 2": "alpaca_eval", "IFEval": "ifeval", "MT-Bench": "mt_bench",
             "Open LLM Leaderboard v1": "open_llm_v1"}  # fmt: skip
"""Title of published tables -> the file of conf/benchmark that measures as they were measured."""
NO_MATTER = {"of", "revision", "max_prompt_tokens", "unrated_share_limit", "dtype", "batch_size", "best_of",
             "length_control"}  # fmt: skip
"""Keys in which a comparable benchmark may differ from its file: `best_of` has published tables of its own, and without
length control there is no number to compare."""
LACKING = {"failed": 0.01, "unrated": 0.05}
"""Counts in `metrics.json` of replies that hold no judgment -> the largest share of them beside published numbers."""


def headed(title: str, why: str | None) -> str:
    """Return the title of a table of numbers that, for this reason, cannot stand beside published ones; None: can."""
    return f"{title} — not comparable with published numbers: {why}" if why else title


def departs(benchmark: Benchmark, numbers: Numbers, asked: bool = True) -> str | None:
    """Return why these numbers of `benchmark` cannot stand beside published ones; None: they can.

    They can where its settings are those of its file in conf/benchmark, few judgments are lacking, and the judge, if
    it was `asked` and not read from files, is OpenAI's.
    """
    file = PUBLISHED.get(benchmark.title)
    if file is None:
        return "nothing is published of it"
    ours, theirs = dict(leaves(fingerprint(benchmark))), _shipped(file)
    matter = [key for key in sorted(ours.keys() | theirs.keys()) if not {*key.split(".")} & NO_MATTER]
    other = [key for key in matter if ours.get(key) != theirs.get(key) or (asked and ours.get(key) == ELSEWHERE)]
    keys = [key.removesuffix(".source_version") for key in other]
    reasons = [f"{', '.join(keys)} not as in conf/benchmark/{file}.yaml"] if keys else []
    for key, share in LACKING.items():
        count, known = numbers.get(key) or 0, numbers.get("items") or 0
        reasons += [f"{count:g} judgments are missing"] if count > share * (known + count) else []
    return ", ".join(reasons) or None


@cache
def _shipped(name: str) -> dict[str, Any]:
    import hydra
    from omegaconf import OmegaConf

    file = OmegaConf.load(CONF / "benchmark" / f"{name}.yaml")
    root = OmegaConf.create({"mirror": "", "benchmark": file})
    return dict(leaves(fingerprint(hydra.utils.instantiate(root.benchmark, _convert_="all"))))


class Result(NamedTuple):
    """The numbers of one benchmark, of one policy."""

    name: str
    """Name of the benchmark in the config."""
    benchmark: Benchmark
    policy: str
    """`base`, `it1`, …"""
    numbers: Numbers
    stand_in: bool = False
    """True if the run starts from another checkpoint than the published system, as a rehearsal does."""

    @property
    def best_of(self) -> int | None:
        return getattr(self.benchmark, "best_of", None)

    @property
    def departs(self) -> str | None:
        """Why no published number is comparable; None: it is."""
        return "another model than published" if self.stand_in else departs(self.benchmark, self.numbers)

    def value_of(self, title: str) -> float | None:
        """Return the value that published tables call `title`; None: not measured."""
        keys = (measure.key for measure in self.benchmark.measures if measure.title == title)
        return next((self.numbers.get(key) for key in keys), None)


def results(
    benchmarks: Mapping[str, Benchmark], nodes: Iterable[Node], store: Store, stand_in: bool = False
) -> list[Result]:
    """Read the scores that are made, by benchmark, then by policy. Raises UserError for a file that cannot be read."""
    order = {name: place for place, name in enumerate(benchmarks)}
    rows = []
    for node in nodes:
        policy, name, stage = node.place
        if stage == SCORES and name in order and store.has(node):
            result = Result(name, benchmarks[name], policy, read_metrics(store.path(node)), stand_in)
            rows.append((order[name], node.place.iteration or 0, result))
    return [result for *_, result in sorted(rows, key=lambda row: row[:2])]


def of_table(rows: Iterable[Result], policy: str, benchmark: str, best_of: int | None) -> Result | None:
    """Return the result that can stand beside a published table of `benchmark`; None: there is none."""
    wanted = (policy, benchmark, best_of)
    same = (row for row in rows if (row.policy, row.benchmark.title, row.best_of) == wanted and row.departs is None)
    return next(same, None)
