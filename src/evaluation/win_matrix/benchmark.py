"""win_matrix: policies of the run and further checkpoints against each other, on the held-out prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, PositiveInt

from src.evaluation.best_of import Several, best_of
from src.evaluation.plan import NOTHING_PUBLISHED, SCORES, Measure, Policies, Policy, chosen
from src.evaluation.win_matrix.scores import WinMatrixScores
from src.generation.stage import Generate, Merge
from src.kernel.artifact import Node, Stage
from src.kernel.config import Label, UserError, config
from src.pairing.win_probability import Estimator
from src.ranking.stage import Rank, Ranker

if TYPE_CHECKING:
    from src.experiment.run import Run

FIRST_TURN = 902
"""Sampling seeds of further policies, as Run counts them: behind those of the run's own, of which 901 are the last."""
MOST = 40
"""Further policies for which there are seeds; a heat map is readable up to about ten in all."""


def _chosen_by(word: str) -> BeforeValidator:
    """Refuses text in place of a config."""

    def check(value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"text is no value of it; {word}@<this key>=<file of conf/{word.lstrip('+')}>")
        return value

    return BeforeValidator(check)


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
    policies: dict[Label, Annotated[Stage, _chosen_by("+model")]]
    """Further ones by name: stages that bring a checkpoint (src/modeling/checkpoints.py)."""
    ranker: Annotated[Ranker | None, _chosen_by("ranker")]
    """Who compares the answers; None: the run's own."""
    estimator: Annotated[Estimator | None, _chosen_by("estimator")]
    """What these comparisons say of win probabilities; None: the run's own."""
    best_of: Several | None
    """Answers a prompt, of which the run's ranker keeps the best, whoever compares them then; None: one answer."""
    resamples: PositiveInt
    """Of the prompts, for the bootstrap."""

    def __post_init__(self) -> None:
        for label, stage in self.policies.items():
            if stage.kind != "policy":
                raise ValueError(f"policies.{label}: brings no policy; choose a file of conf/model")
            if re.fullmatch(r"base|null|it\d+", label):
                raise ValueError(f"policies.{label}: policies of the run are called so; give it another name")
        if len(self.policies) > MOST:
            raise ValueError(f"policies: {len(self.policies)} are more than the {MOST} that there are seeds for")

    def departs(self, policy: str) -> str | None:
        return NOTHING_PUBLISHED

    def nodes(self, name: str, run: Run, policies: Policies) -> Iterator[Node]:
        """Merged answers, their joint ranking and the scores, all of the last chosen policy of the run."""
        own = self._own(name, policies)
        prompts = policies["base"].answers.inputs[0]
        further = {
            label: _further(f"{name}/{label}", run, stage, prompts, FIRST_TURN + number)
            for number, (label, stage) in enumerate(self.policies.items())
        }
        if len(own) + len(further) < 2:
            raise UserError(
                f"benchmark.{name}: {next(iter(own))} alone has no matrix; raise iter, take more in .of, or name "
                f"other checkpoints: +model@benchmark.{name}.policies.<name>=<file of conf/model>"
            )
        answers = [self._answers(f"{policy}/{name}", run, found) for policy, found in own.items()]
        answers += [self._answers(f"{name}/{label}", run, found) for label, found in further.items()]
        yield self._scores(name, run, (*own, *further), list(own)[-1], tuple(answers))

    def _own(self, name: str, policies: Policies) -> dict[str, Policy]:
        twice = sorted({policy for policy in self.of or [] if (self.of or []).count(policy) > 1})
        if twice:
            raise UserError(f"benchmark.{name}.of: {twice[0]} is named twice")
        own = chosen(policies, self.of, f"benchmark.{name}.of")
        if not own:
            raise UserError(f"benchmark.{name}.of: name at least one of {', '.join(policies)}: the scores are its own")
        return own

    def _answers(self, place: str, run: Run, policy: Policy) -> Node:
        """One a prompt; the best of several begin with the very answer that there is without."""
        one, count = policy.answers, run.data.held_out_prompts
        if self.best_of is None:
            return one
        assert isinstance(one.stage, Generate)
        several = replace(one.stage, sampling=replace(one.stage.sampling, K=self.best_of))
        work = count * self.best_of
        answers = run.node(f"{place}/answers", several, one.inputs, rows=count, work=work, job="evaluation")
        return best_of(place, run, answers, count, self.best_of)

    def _scores(self, name: str, run: Run, names: tuple[str, ...], last: str, answers: tuple[Node, ...]) -> Node:
        count, ranker = run.data.held_out_prompts, self.ranker or run.ranker
        merged = run.node(f"{last}/{name}/joint_answers", Merge(), answers, rows=count, job="evaluation")
        scores = WinMatrixScores(
            names=names,
            last=last,
            judge=ranker.name,
            estimator=self.estimator or run.estimator,
            confidence=run.held_out.confidence,
            resamples=self.resamples,
            seed=run.seed,
        )
        inputs = (merged, self._rank(name, f"{last}/{name}/joint_ranking", run, merged, len(names)))
        return run.node(f"{last}/{name}/{SCORES}", scores, inputs, rows=count, job="evaluation")

    def _rank(self, name: str, place: str, run: Run, merged: Node, answers: int) -> Node:
        count = run.data.held_out_prompts
        if self.ranker is None:
            return run.rank(place, merged, count, answers)
        by = self.ranker.name
        models = tuple(
            run.node(f"{name}/ranker/model{i}", stage, work=1, kind="checkpoint", by=by)
            for i, stage in enumerate(self.ranker.models)
        )
        work = count * answers * (1 if self.ranker.scalar else answers - 1) or None
        rank = Rank(ranker=self.ranker, key=f"benchmark.{name}.ranker")
        return run.node(place, rank, (merged, *models), rows=count, work=work, by=by, job="evaluation")


def _further(place: str, run: Run, stage: Stage, prompts: Node, turn: int) -> Policy:
    """Answers as the run's own policies do."""
    policy = run.node(f"{place}/policy", stage, work=1, kind="checkpoint")
    return run.answer(place, policy, prompts, turn)
