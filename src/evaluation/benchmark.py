"""What a benchmark is, what it may ask of a run, and the best of several answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from pydantic import Field

from src.generation.engine import Sampling
from src.generation.stage import Generate
from src.kernel.artifact import Job, Node, Stage
from src.kernel.config import Device, UserError, config
from src.kernel.rows import RANKING, RESPONSES, Row, read_rows, write_metrics, write_rows
from src.pairing.win_probability import Estimator, exact_means
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

    def generate(self, sampling: Sampling, seed: int) -> Generate: ...

    def rank(self, name: str, responses: Node, prompts: int, answers: int) -> Node:
        """Compare `answers` answers to each of `prompts` prompts by the run's ranker."""
        ...

    def answer(self, name: str, policy: Node, prompts: Node, turn: int) -> Policy:
        """Give one held-out answer a prompt, from a sampling seed that nothing else uses."""
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

    def nodes(self, name: str, run: Planner, policies: Policies) -> Iterator[Node]:
        """Yield artifacts called `<policy>/<name>/…`; those that end in SCORES hold the numbers.

        Raises UserError for what the run lacks.
        """
        ...


@runtime_checkable
class Scoring(Protocol):
    """A benchmark that can compute its numbers without a run, from what judges or lm-eval have already said."""

    @property
    def measures(self) -> tuple[Measure, ...]: ...

    def score_files(self, name: str, paths: Sequence[Path], confidence: float) -> dict[str, Numbers]:
        """Return the numbers of each model that was scored. `name`: of the benchmark in the config.

        Raises UserError naming a file.
        """
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


# The best of several answers ------------------------------------------------------------------------------------------

Several = Annotated[int, Field(ge=2)]
"""Answers to a prompt, of which one is kept."""


def best_answers(
    name: str, ranked: str, run: Planner, generate: Generate, inputs: tuple[Node, Node], kind: str
) -> Node:
    """Plan one answer to each prompt: the node `name`, and where `generate` gives K of them `<ranked>/best`.

    `inputs`: prompts, policy. The run's ranker compares the K answers in `<ranked>/ranking`; a pairwise ranker makes
    K (K - 1) comparisons a prompt. The first of K answers is the one that K=1 gives. `kind`: of work, for forecasts.
    """
    count, n = inputs[0].rows, generate.sampling.K
    answers = run.node(name, generate, inputs, rows=count, work=count * n, kind=kind, job="evaluation")
    if n == 1:
        return answers
    ranking = run.rank(f"{ranked}/ranking", answers, count, n)
    stage = BestOf(estimator=run.estimator)
    return run.node(f"{ranked}/best", stage, (answers, ranking), rows=count, job="evaluation")


@config
class BestOf:
    """Keeps the answer of each prompt that the ranker puts first (arXiv:2405.00675: n = 16, PairRM).

    In: responses with n answers a prompt, their ranking. Out: RESPONSES rows with one answer each, `metrics.json`.
    """

    kind: ClassVar[str] = "responses"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    estimator: Estimator
    """Says P(answer > answer), where the ranker gives no scores."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows, ranking = read_ranked(*inputs)
        places = [self.best(ranked) for ranked in ranking]
        best = [row | {"responses": [row["responses"][place]]} for row, place in zip(rows, places, strict=True)]
        write_rows(out, best, RESPONSES)
        lengths = [[len(answer["token_ids"]) for answer in row["responses"]] for row in rows]
        count = sum(map(len, lengths))
        numbers = {
            "prompts": len(rows),
            "answers": count,
            "tokens": float(np.mean([each[place] for each, place in zip(lengths, places, strict=True)])),
            "tokens_of_all": float(np.mean([tokens for each in lengths for tokens in each])),
            "first": places.count(0) / len(places),  # about 1/n where the answers do not differ
            "distinct": sum(len({answer["text"] for answer in row["responses"]}) for row in rows) / count,
        }
        write_metrics(out, numbers)

    def best(self, ranking: Row) -> int:
        """Return the place of the highest score, or of the highest mean P(it beats another); of equals the first.

        Answers whose comparisons are the same numbers in another order are equal.
        """
        if ranking["scores"] is not None:
            return int(np.argmax(ranking["scores"]))
        return int(np.argmax(exact_means(self.estimator.matrix(ranking))))


def read_ranked(responses: Path, ranking: Path) -> tuple[list[Row], list[Row]]:
    """Return RESPONSES rows and the RANKING rows of the same prompts. Raises UserError where the prompts differ."""
    rows, ranked = read_rows(responses, RESPONSES), read_rows(ranking, RANKING)
    if [row["prompt_id"] for row in rows] != [row["prompt_id"] for row in ranked]:
        raise UserError(f"{ranking}: ranks other prompts than {responses} has")
    return rows, ranked
