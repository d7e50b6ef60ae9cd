"""benchmark=mt_bench: 80 questions of two turns, each answer graded from 1 to 10 by a judge (arXiv:2306.05685)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import NonNegativeFloat, PositiveInt

from src.evaluation.answers import best_answers
from src.evaluation.benchmark import SCORES, SEED, Measure, Planner, Policies, Scored, chosen
from src.evaluation.mt_bench.questions import Answers, Files, FirstTurns, Questions, SecondTurns, read_questions
from src.evaluation.mt_bench.scores import Judge, Score, averages, in_fastchats_words, rating, read_judgments
from src.generation.engine import PenalisedSampling, Sampling
from src.kernel.artifact import Node
from src.kernel.config import Share, config
from src.modeling.endpoint import BenchmarkJudge

PER_CATEGORY = 10
"""Questions, as published; for what a plan says."""


@config
class MTBench:
    """Whole conversations: the policy answers, is asked again, answers, and a judge grades both answers."""

    title: ClassVar[str] = "MT-Bench"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("score", "MT-Bench"),
        Measure("turn_1", "turn 1"),
        Measure("turn_2", "turn 2"),
    )

    of: list[str] | None
    """Policies, such as [base, it3]; null: all."""
    first: PositiveInt | None
    """Questions of each category; null: all."""
    files: Files
    temperatures: dict[str, NonNegativeFloat]
    """Category -> temperature of the policy's sampling."""
    top_k: PositiveInt
    """So many of the likeliest tokens are drawn from, where the temperature is not 0."""
    max_new_tokens: PositiveInt
    """Tokens of an answer."""
    max_prompt_tokens: PositiveInt
    """A longer prompt is an error."""
    judge: BenchmarkJudge
    unrated_share_limit: Share
    """More replies of the judge without a rating end it; 1: none do."""

    def nodes(self, name: str, run: Planner, policies: Policies) -> Iterator[Node]:
        key = f"benchmark.{name}"
        self.files.file("questions", f"{key}.files")  # named by its key where it is not there
        asked = Questions(files=self.files, categories=sorted(self.temperatures), first=self.first, key=key)
        count = self._count(self.temperatures)
        questions = run.node(f"{name}/questions", asked, rows=count)
        judge = Judge(endpoint=self.judge, key=f"{key}.judge", unrated_share_limit=self.unrated_share_limit)
        score = Score(confidence=run.held_out.confidence)
        requests = 2 * count
        for policy, entry in chosen(policies, self.of, f"{key}.of").items():
            place = f"{policy}/{name}"
            turns = self._turns(place, name, run, questions, entry.policy)
            stage = Answers(model=f"{run.model.name}-{policy}", key=key)
            answers = run.node(f"{place}/answers", stage, (questions, *turns), rows=requests, job="evaluation")
            model = self.judge.model
            judgments = run.node(f"{place}/judgments", judge, (answers,), requests, requests, by=model, job="judging")
            yield run.node(f"{place}/{SCORES}", score, (judgments, questions), rows=requests, job="judging")

    def _turns(self, place: str, name: str, run: Planner, questions: Node, policy: Node) -> tuple[Node, ...]:
        """Plan answers to the first turns, an artifact for each temperature, and then as many to the second turns."""
        first, second = list[Node](), list[Node]()
        for temperature in sorted(set(self.temperatures.values())):
            categories = sorted(category for category, value in self.temperatures.items() if value == temperature)
            at, count = f"at_{temperature:g}", self._count(categories)
            generate = run.generate(self._sampling(temperature), run.seed_of(SEED), f"benchmark.{name}")
            prompts = run.node(f"{name}/prompts_{at}", FirstTurns(categories=categories), (questions,), rows=count)
            kind = "mt_bench_turns"
            first.append(best_answers(f"{place}/turn_1_{at}", run, generate, (prompts, policy), kind))
            stage, inputs = SecondTurns(categories=categories, key=f"benchmark.{name}"), (first[-1], questions)
            prompts = run.node(f"{place}/prompts_2_{at}", stage, inputs, rows=count, job="evaluation")
            second.append(best_answers(f"{place}/turn_2_{at}", run, generate, (prompts, policy), kind))
        return (*first, *second)

    def _sampling(self, temperature: float) -> Sampling:
        fields = {"max_new_tokens": self.max_new_tokens, "max_prompt_tokens": self.max_prompt_tokens, "top_p": 1.0}
        if not temperature:
            return Sampling(K=1, temperature=0.0, **fields)
        fields |= {"K": 1, "temperature": temperature, "top_k": self.top_k}
        return PenalisedSampling(**fields, presence_penalty=0.0, frequency_penalty=0.0)

    def _count(self, categories: Collection[str]) -> int:
        """Count the questions in them, as published."""
        return len(categories) * min(self.first or PER_CATEGORY, PER_CATEGORY)

    def score_files(self, name: str, paths: Sequence[Path], confidence: float) -> list[Scored]:
        """Average judgments in files, on `files.questions`, of every model and judge, as FastChat does."""
        questions = read_questions(self.files.file("questions", f"benchmark.{name}.files"), self.first)
        categories = {row["question_id"]: row["category"] for row in questions}
        scored = []
        for (model, judge), judgments in read_judgments(paths).items():
            label = f"{model}, judged by {judge}"
            metrics, _ = averages(f"{', '.join(map(str, paths))}: {label}", judgments, categories, confidence)
            apart = any(rating(row["judgment"]) != row["score"] for row in judgments if "judgment" in row)
            reasons = {
                f"judged by {judge}, not {self.judge.model}": judge != self.judge.model,
                "scores are not those in the judgments": apart,
                "judge prompts are not FastChat's": not in_fastchats_words(judgments, categories),
            }
            scored.append(Scored(label, {**metrics}, ", ".join(why for why, is_so in reasons.items() if is_so)))
        return scored
