"""benchmark=win_matrix: policies of the run and further checkpoints against each other, on the held-out prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import PositiveInt

from src.evaluation.answers import read_ranked
from src.evaluation.benchmark import SCORES, Measure, Numbers, Planner, Policies, chosen
from src.evaluation.held_out import Merge
from src.evaluation.statistics import bootstrap_interval
from src.kernel.artifact import Node, Stage
from src.kernel.config import Confidence, Label, UserError, config
from src.kernel.rows import write_metrics, write_rows
from src.pairing.win_probability import Estimator
from src.ranking.stage import Ranker

FIRST_TURN = 902
"""Sampling seeds of further policies, as Run counts them: behind those of the run's own, of which 901 are the last."""


@config
class WinMatrix:
    """P(the row's answer beats the column's), every policy against every other under one ranker.

    Each policy gives one answer per prompt, sampled as the run's held-out answers are; those of the run's own policies
    are these very answers. The scores belong to the last of the run's policies.
    """

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("win", "win rate over the first policy", 3),
        Measure("longer_wins", "longer answer wins", 3),
    )

    of: list[str] | None
    """Policies of the run, such as [base,it3]; None: all."""
    policies: dict[Label, Stage]
    """Up to 40 further ones by name: stages that bring a checkpoint (src/modeling/checkpoints.py)."""
    ranker: Ranker | None
    """Who compares the answers; None: the judge of the held-out answers."""
    estimator: Estimator | None
    """Turns these comparisons into win probabilities; None: that of the held-out answers."""
    resamples: PositiveInt
    """Resamples of the prompts, for the bootstrap."""

    def __post_init__(self) -> None:
        for label in self.policies:
            if re.fullmatch(r"base|null|it\d+", label):
                raise ValueError(f"policies.{label}: the run's own policies use this name; give it another name")

    @property
    def title(self) -> str:
        return f"Win-rate matrix, judged by {self.ranker.name}" if self.ranker else "Win-rate matrix"

    def nodes(self, name: str, run: Planner, policies: Policies) -> Iterator[Node]:
        """Plan merged answers, their joint ranking and the scores, all of the last chosen policy of the run."""
        key = f"benchmark.{name}"
        ours = chosen(policies, self.of, f"{key}.of")
        names = (*ours, *self.policies)
        if not ours or len(names) < 2:
            other = f"name other checkpoints: +model@{key}.policies.<name>=<file of conf/model>"
            raise UserError(f"{key}: needs a policy of the run and another; raise iter, take more in .of, or {other}")
        last = [*ours][-1]
        prompts = policies["base"].answers.inputs[0]
        count = prompts.rows
        answers = [entry.answers for entry in ours.values()]
        for number, (label, stage) in enumerate(self.policies.items()):
            place = f"{name}/{label}"
            checkpoint = run.node(f"{place}/policy", stage, work=1, kind="checkpoint")
            answers.append(run.answer(place, checkpoint, prompts, FIRST_TURN + number).answers)
        at = f"{last}/{name}"
        merged = run.node(f"{at}/joint_answers", Merge(), tuple(answers), rows=count, job="evaluation")
        ranking = run.rank(f"{at}/joint_ranking", merged, count, len(names), self.ranker or run.judge)
        judge, estimator = (self.ranker or run.judge).name, self.estimator or run.held_out.estimator
        how: dict[str, Any] = {"confidence": run.held_out.confidence, "resamples": self.resamples, "seed": run.seed}
        scores = WinMatrixScores(names=names, last=last, judge=judge, estimator=estimator, **how)
        yield run.node(f"{at}/{SCORES}", scores, (merged, ranking), rows=count, job="evaluation")


@config
class WinMatrixScores(Stage):
    """Says who beats whom, how surely, and how long the answers are that win.

    In: merged responses, one answer of each policy per prompt, and their joint ranking. Out: one row per prompt, and
    `metrics.json`, which a report draws as a heat map: `<a>_over_<b>` with its interval, of every policy over every
    other. `<a>_distinct` counts a policy's different texts, `<a>_truncated` is the share of its answers that the
    ranker saw in part.
    """

    kind: ClassVar[str] = "win_matrix"

    names: tuple[str, ...]
    """Names of the policies, in the order of a prompt's answers."""
    last: str
    """The policy whose scores these are: against the first, or where it is the first, against the second."""
    judge: str
    """Name of the ranker."""
    estimator: Estimator
    """Says P(answer > answer)."""
    confidence: Confidence
    """Level of the intervals, such as 0.95."""
    resamples: PositiveInt
    """Resamples of the prompts, for the bootstrap; the same for all pairs."""
    seed: int
    """Seed of the bootstrap."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows, ranking = read_ranked(*inputs)
        estimator = self.estimator.measured(ranking)
        wins = np.stack([exact(estimator.matrix(ranked)) for ranked in ranking])  # (prompt, policy, policy)
        mean = exact(wins.mean(0))
        truncated = np.array([ranked["truncated"] for ranked in ranking], float)
        answers = {name: [row["responses"][i] for row in rows] for i, name in enumerate(self.names)}
        texts = {name: [answer["text"] for answer in each] for name, each in answers.items()}
        characters = np.array([[len(text) for text in each] for each in texts.values()], float).T  # (prompt, policy)

        columns: dict[str, np.ndarray] = {}
        numbers: Numbers = {
            "items": len(rows),
            "tau": float(estimator.tau),
            "longer_wins": longer_wins(wins, characters),
        }
        for i, name in enumerate(self.names):
            tokens = np.array([len(answer["token_ids"]) for answer in answers[name]], float)
            columns |= {f"{name}_tokens": tokens, f"{name}_characters": characters[:, i]}
            numbers |= {
                f"{name}_tokens": float(tokens.mean()),
                f"{name}_characters": float(characters[:, i].mean()),
                f"{name}_truncated": float(truncated[:, i].mean()),
                f"{name}_distinct": len({*texts[name]}),
            }
            for j, other in enumerate(self.names[:i]):
                key, back = f"{name}_over_{other}", f"{other}_over_{name}"
                columns[key] = wins[:, i, j]
                low, high = bootstrap_interval((columns[key],), np.mean, self.confidence, self.resamples, self.seed)
                numbers |= {key: float(mean[i, j]), f"{key}_low": low, f"{key}_high": high}
                numbers |= {back: float(mean[j, i]), f"{back}_low": 1 - high, f"{back}_high": 1 - low}

        last = self.names.index(self.last)
        first = 0 if last else 1
        main = f"{self.last}_over_{self.names[first]}"
        numbers |= {f"win{end}": numbers[f"{main}{end}"] for end in ("", "_low", "_high")}
        scores = {"item_id": [row["prompt_id"] for row in rows], "score": wins[:, last, first]} | columns
        table = [dict(zip(scores, values, strict=True)) for values in zip(*scores.values(), strict=True)]
        write_rows(out, table, pa.schema(dict.fromkeys(scores, pa.float64()) | {"item_id": pa.string()}))
        write_metrics(out, numbers)


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
