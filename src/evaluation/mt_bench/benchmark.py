"""benchmark=mt_bench: 80 questions of two turns, each answer graded from 1 to 10 by a judge (arXiv:2306.05685)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt

from src.artifact import Node
from src.config import Free, Share, config
from src.evaluation.best_of import best_of
from src.evaluation.mt_bench.answers import Answers
from src.evaluation.mt_bench.judge import Judge
from src.evaluation.mt_bench.questions import KEY, TURNS, Files, FirstTurns, Questions
from src.evaluation.mt_bench.score import Score, models_in, score_file
from src.evaluation.mt_bench.second_turn import SecondTurns
from src.evaluation.plan import SCORES, Measure, Policies, chosen, part_of
from src.evaluation.results import Numbers
from src.generation.contract import PenalisedSampling, Sampling
from src.ranking.verdicts import JudgeEndpoint

if TYPE_CHECKING:
    from src.pipeline import Run

PER_CATEGORY = 10
"""Questions, as published; for what a plan says."""
PUBLISHED_JUDGE = "gpt-4"
SEED = 950
"""Of the run's sampling seeds."""


@config
class MTBench:
    """Whole conversations: the policy answers, is asked again, answers, and a judge grades both answers."""

    of: Free[list[str] | None]
    """Policies, such as [base, it3]; null: all."""
    first: PositiveInt | None
    """Questions of each category; null: all."""
    files: Files
    temperatures: dict[str, NonNegativeFloat]
    """Category -> of the policy's sampling."""
    top_k: PositiveInt | None
    """Of the likeliest tokens one is drawn, where the temperature is not 0; null: of all."""
    best_of: Annotated[int, Field(ge=2)] | None
    """Answers a turn, of which the run's ranker keeps the best, where the temperature is not 0; null: one, unranked."""
    max_new_tokens: PositiveInt
    """Of an answer."""
    max_prompt_tokens: PositiveInt
    """A longer prompt is an error."""
    judge: JudgeEndpoint
    unrated_share_limit: Free[Share]
    """More replies of the judge without a rating end it; 1: none do."""

    @property
    def title(self) -> str:
        return "MT-Bench"

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (Measure("score", "MT-Bench"), *(Measure(f"turn_{turn}", f"turn {turn}") for turn in TURNS))

    def departs(self, policy: str) -> str | None:
        if self.files.package is None:
            return "files of one's own"
        if self.judge.model != PUBLISHED_JUDGE:
            return f"judged by {self.judge.model}"
        return part_of(self.first)

    def nodes(self, name: str, run: Run, policies: Policies) -> Iterator[Node]:
        asked = Questions(files=self.files, categories=sorted(self.temperatures), first=self.first)
        count = self._count(self.temperatures)
        questions = run.node(f"{name}/questions", asked, rows=count)
        judge = Judge(endpoint=self.judge, key=f"{KEY}.judge", unrated_share_limit=self.unrated_share_limit)
        score = Score(confidence=run.held_out.confidence)
        for policy, its in chosen(policies, self.of, f"benchmark.{name}.of").items():
            place, requests = f"{policy}/{name}", count * len(TURNS)
            turns = list(self._answer(place, name, run, questions, its.policy))
            inputs = (questions, *(first for first, _ in turns), *(second for _, second in turns))
            named = Answers(model=f"{run.model.name}-{policy}")
            answers = run.node(f"{place}/answers", named, inputs, rows=requests, job="evaluation")
            how = {"rows": requests, "work": requests, "by": self.judge.model, "job": "evaluation"}
            judgments = run.node(f"{place}/judgments", judge, (answers,), **how)
            yield judgments
            yield run.node(f"{place}/{SCORES}", score, (judgments, questions), rows=requests, job="evaluation")

    def score_files(self, name: str, paths: Sequence[Path]) -> dict[str, Numbers]:
        """Of every model in files of judgments, as FastChat averages them."""
        models = [(path, model) for path in paths for model in models_in(path)]
        doubled = len({model for _, model in models}) < len(models)
        names = {one: f"{one[0]}: {one[1]}" if doubled else one[1] for one in models}
        return {name: dict(score_file(*one).metrics) for one, name in names.items()}

    def _answer(self, place: str, name: str, run: Run, questions: Node, policy: Node) -> Iterator[tuple[Node, Node]]:
        """Answers to the first and to the second turns, a pair for each temperature: it is that of an artifact."""
        for temperature in sorted(set(self.temperatures.values())):
            categories = sorted(c for c, own in self.temperatures.items() if own == temperature)
            end, count = f"at_{temperature:g}", self._count(categories)
            how = {"rows": count, "job": "evaluation"}
            n = self.best_of or 1 if temperature else 1
            generate = run.generate(replace(self._sampling(temperature), K=n), run.seed * run.SEEDS_PER_RUN + SEED)
            measured = how | {"work": count * n, "kind": "mt_bench_turns"}
            prompts = run.node(f"{name}/prompts_{end}", FirstTurns(categories=categories), (questions,), rows=count)
            first = run.node(f"{place}/turn_1_{end}", generate, (prompts, policy), **measured)
            first = best_of(f"{place}/ranked_1_{end}", run, first, count, n)
            again = SecondTurns(categories=categories)
            prompts = run.node(f"{place}/prompts_2_{end}", again, (first, questions), **how)
            second = run.node(f"{place}/turn_2_{end}", generate, (prompts, policy), **measured)
            yield first, best_of(f"{place}/ranked_2_{end}", run, second, count, n)

    def _sampling(self, temperature: float) -> Sampling:
        tokens = {"max_new_tokens": self.max_new_tokens, "max_prompt_tokens": self.max_prompt_tokens}
        own = {"K": 1, "temperature": temperature, "top_p": 1.0} | tokens
        if not temperature or self.top_k is None:
            return Sampling(**own)
        return PenalisedSampling(**own, top_k=self.top_k, presence_penalty=0.0, frequency_penalty=0.0)

    def _count(self, categories: Collection[str]) -> int:
        """Questions in them, as published."""
        return len(categories) * min(self.first or PER_CATEGORY, PER_CATEGORY)
