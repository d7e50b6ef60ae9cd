"""benchmark=win_matrix: policies of the run and further checkpoints against each other, on the held-out prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt

from src.evaluation.benchmark import SCORES, Measure, Planner, Policies, chosen
from src.evaluation.held_out import Merge
from src.evaluation.statistics import Interval, bootstrap_interval
from src.kernel.artifact import Node, Stage
from src.kernel.config import Confidence, Label, UserError, config
from src.kernel.rows import RANKING, RESPONSES, read_rows, write_metrics, write_rows
from src.pairing.win_probability import Estimator
from src.ranking.stage import Rank, Ranker

FIRST_TURN = 902
"""Sampling seeds of further policies, as Run counts them: behind those of the run's own, of which 901 are the last."""
MOST = 40
"""Further policies for which there are seeds; a heat map is readable up to about ten in all."""


@config
class WinMatrix:
    """P(the row's answer beats the column's), every policy against every other under one ranker.

    One answer a prompt each, sampled as the run's held-out answers are; those of the run's own policies are these very
    answers. Its scores are those of the last of the run's policies.
    """

    title: ClassVar[str] = "Win-rate matrix"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("win", "win rate over the first policy", 3),
        Measure("longer_wins", "longer answer wins", 3),
    )

    of: list[str] | None
    """Policies of the run, such as [base,it3]; None: all."""
    policies: Annotated[dict[Label, Stage], Field(max_length=MOST)]
    """Further ones by name: stages that bring a checkpoint (src/modeling/checkpoints.py)."""
    ranker: Ranker | None
    """Who compares the answers; None: the run's own."""
    estimator: Estimator | None
    """What these comparisons say of win probabilities; None: the run's own."""
    resamples: PositiveInt
    """Resamples of the prompts, for the bootstrap."""

    def __post_init__(self) -> None:
        for label in self.policies:
            if re.fullmatch(r"base|null|it\d+", label):
                raise ValueError(f"policies.{label}: policies of the run are called so; give it another name")

    def nodes(self, name: str, run: Planner, policies: Policies) -> Iterator[Node]:
        """Plan merged answers, their joint ranking and the scores, all of the last chosen policy of the run."""
        key = f"benchmark.{name}"
        ours = chosen(policies, self.of, f"{key}.of")
        names = (*ours, *self.policies)
        if not ours or len(names) < 2:
            raise UserError(
                f"{key}: needs a policy of the run and another; raise iter, take more in .of, or name other "
                f"checkpoints: +model@{key}.policies.<name>=<file of conf/model>"
            )
        last = [*ours][-1]
        count, prompts = run.held_out_prompts, policies["base"].answers.inputs[0]
        answers = [entry.answers for entry in ours.values()]
        for number, (label, stage) in enumerate(self.policies.items()):
            place = f"{name}/{label}"
            checkpoint = run.node(f"{place}/policy", stage, work=1, kind="checkpoint")
            answers.append(run.answer(place, checkpoint, prompts, FIRST_TURN + number).answers)
        merged = run.node(f"{last}/{name}/joint_answers", Merge(), tuple(answers), rows=count, job="evaluation")
        scores = WinMatrixScores(
            names=names,
            last=last,
            judge=(self.ranker or run.ranker).name,
            estimator=self.estimator or run.estimator,
            confidence=run.confidence,
            resamples=self.resamples,
            seed=run.seed,
        )
        inputs = (merged, self._rank(name, f"{last}/{name}/joint_ranking", run, merged, len(names)))
        yield run.node(f"{last}/{name}/{SCORES}", scores, inputs, rows=count, job="evaluation")

    def _rank(self, name: str, place: str, run: Planner, merged: Node, answers: int) -> Node:
        count = run.held_out_prompts
        if self.ranker is None:
            return run.rank(place, merged, count, answers)
        by = self.ranker.name
        models = tuple(
            run.node(f"{name}/ranker/model{i}", stage, work=1, kind="checkpoint", by=by)
            for i, stage in enumerate(self.ranker.models)
        )
        work = count * answers * (1 if self.ranker.scalar else answers - 1) or None
        rank = Rank(ranker=self.ranker)
        return run.node(place, rank, (merged, *models), rows=count, work=work, by=by, job="evaluation")


@config
class WinMatrixScores:
    """Who beats whom, how surely, and how long the answers are that win.

    In: merged responses, an answer of each policy a prompt, and their joint ranking. Out: a row a prompt, and
    `metrics.json`, which a report draws as a heat map.
    """

    kind: ClassVar[str] = "win_matrix"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    names: tuple[str, ...]
    """Names of the policies, in the order of a prompt's answers."""
    last: str
    """Whose scores these are: against the first, or where it is the first, against the second."""
    judge: str
    """Name of the ranker."""
    estimator: Estimator
    """Says P(answer > answer)."""
    confidence: Confidence
    """Level of the intervals, such as 0.95."""
    resamples: PositiveInt
    """Resamples of the prompts, for the bootstrap."""
    seed: int
    """Seed of the bootstrap."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows, ranking = read_rows(inputs[0], RESPONSES), read_rows(inputs[1], RANKING)
        if [row["prompt_id"] for row in rows] != [ranked["prompt_id"] for ranked in ranking]:
            raise UserError(f"{inputs[1]}: ranks other prompts than {inputs[0]} has")
        wins = np.stack([exact(self.estimator.matrix(ranked)) for ranked in ranking])  # (prompt, policy, policy)
        answers = [row["responses"] for row in rows]
        tokens = np.array([[len(answer["token_ids"]) for answer in each] for each in answers], float)
        characters = np.array([[len(answer["text"]) for answer in each] for each in answers], float)
        last = self.names.index(self.last)
        main = (last, 0 if last else 1)
        pairs = list(zip(*np.tril_indices(len(self.names), -1), strict=True))

        columns = {"item_id": [row["prompt_id"] for row in rows], "score": wins[:, *main].tolist()}
        columns |= {f"{self.names[i]}_over_{self.names[j]}": wins[:, i, j].tolist() for i, j in pairs}
        for i, name in enumerate(self.names):
            columns |= {f"{name}_tokens": tokens[:, i].tolist(), f"{name}_characters": characters[:, i].tolist()}
        schema = pa.schema({"item_id": pa.string()} | dict.fromkeys(list(columns)[1:], pa.float64()))
        table = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        write_rows(out, table, schema)

        texts = np.array([[answer["text"] for answer in each] for each in answers], dtype=object)
        truncated = np.array([ranked["truncated"] for ranked in ranking], float)
        write_metrics(out, self._metrics(wins, main, texts, tokens, characters, truncated))

    def _metrics(
        self,
        wins: np.ndarray,
        main: tuple[int, int],
        texts: np.ndarray,
        tokens: np.ndarray,
        characters: np.ndarray,
        truncated: np.ndarray,
    ) -> dict[str, float | None]:
        """Compute `<a>_over_<b>` with its interval, of every policy over every other, and what the answers are like.

        distinct: different texts among a policy's answers. same_as: share of prompts to which both gave the same text,
        and half a win each is theirs by that alone. truncated: share of answers that the ranker saw in part.
        """
        win, low, high = exact(wins.mean(0)), np.zeros_like(wins[0]), np.zeros_like(wins[0])
        for i, j in zip(*np.tril_indices(len(self.names), -1), strict=True):
            low[i, j], high[i, j] = self.interval(wins[:, i, j])
            low[j, i], high[j, i] = 1 - high[i, j], 1 - low[i, j]

        def three(key: str, i: int, j: int) -> dict[str, float]:
            return {key: float(win[i, j]), f"{key}_low": float(low[i, j]), f"{key}_high": float(high[i, j])}

        numbers: dict[str, float | None] = {"items": len(wins)}
        numbers |= three("win", *main) | {"longer_wins": longer_wins(wins, characters)}
        for i, name in enumerate(self.names):
            numbers |= {
                f"{name}_tokens": float(tokens[:, i].mean()),
                f"{name}_characters": float(characters[:, i].mean()),
                f"{name}_truncated": float(truncated[:, i].mean()),
                f"{name}_distinct": len(set(texts[:, i])),
            }
            for j, other in enumerate(self.names):
                numbers |= three(f"{name}_over_{other}", i, j) if i != j else {}
                numbers |= {f"{name}_same_as_{other}": float((texts[:, i] == texts[:, j]).mean())} if i > j else {}
        return numbers

    def interval(self, values: np.ndarray) -> Interval:
        """Bootstrap the mean over the prompts, with the same resamples for all pairs."""
        if len(values) < 2:
            return 0.0, 1.0
        return bootstrap_interval((values,), np.mean, self.confidence, self.resamples, self.seed)


def exact(matrix: np.ndarray) -> np.ndarray:
    """Take what the lower triangle says, so that matrix + matrix.T is exactly 1: rounding would leave some digits."""
    lower = np.tril(matrix, -1)
    return lower + np.triu(1 - lower.T, 1) + np.diag(np.full(len(matrix), 0.5))


def longer_wins(wins: np.ndarray, characters: np.ndarray) -> float | None:
    """Take the mean P(the longer of two answers wins), over all prompts and pairs; None where all are equally long.

    `wins` (prompt, m, m), `characters` (prompt, m). Far over 1/2, a ranker may go by length.
    """
    longer = characters[:, :, None] > characters[:, None, :]
    return float(wins[longer].mean()) if longer.any() else None
