"""benchmark=ifeval: verifiable instructions (arXiv:2311.07911), answered greedily and checked by lm-eval's checker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, PositiveInt

from src.data.source import READERS, Source
from src.evaluation.best_of import Several, best_of
from src.evaluation.ifeval.checker import check_installed
from src.evaluation.ifeval.questions import IFEvalQuestions
from src.evaluation.ifeval.scores import IFEvalScores
from src.evaluation.plan import SCORES, Measure, Policies, chosen, other, part_of, together
from src.generation.engine import Sampling
from src.kernel.artifact import Node
from src.kernel.config import config

if TYPE_CHECKING:
    from src.experiment.run import Run

SPLIT = "train"
"""Of the data set on the hub, its only one."""
PROMPTS = 541
"""Published."""
PUBLISHED_DECODING = (0.0, 1280)
"""Temperature, and tokens of an answer."""
SEED = 950
"""Of answers that are drawn, within a run's seeds."""


@config
class IFEval:
    path: str
    """Hub id, or a file in the official format: key, prompt, instruction_id_list, kwargs."""
    revision: str | None
    """Of a hub id: commit, tag or branch, null for `main`."""
    first: PositiveInt | None
    """Null: all prompts."""
    of: list[str] | None
    """Policies, such as [base, it3]; null: all."""
    temperature: NonNegativeFloat
    """0: greedy, as published."""
    best_of: Several | None
    """Answers a prompt, of which the run's ranker keeps the best; null: one, unranked."""
    max_new_tokens: PositiveInt
    max_prompt_tokens: PositiveInt
    """A longer prompt is an error."""

    def __post_init__(self) -> None:
        if self.best_of and not self.temperature:
            raise ValueError("best_of: at temperature 0 all answers are the same; raise temperature too")

    @property
    def title(self) -> str:
        return "IFEval"

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (
            Measure("prompt_level_strict", "prompt strict"),
            Measure("instruction_level_strict", "instruction strict"),
            Measure("prompt_level_loose", "prompt loose"),
            Measure("instruction_level_loose", "instruction loose"),
            Measure("leaderboard_ifeval", "IFEval"),
            Measure("tokens", "tokens", 0),
        )

    def departs(self, policy: str) -> str | None:
        decoding = (self.temperature, self.max_new_tokens)
        return together(other("another decoding", decoding, PUBLISHED_DECODING), part_of(self.first))

    def nodes(self, name: str, run: Run, policies: Policies) -> Iterator[Node]:
        check_installed()
        source = self._source()
        count = min(self.first or PROMPTS, source.count() or PROMPTS)
        asked = IFEvalQuestions(source=source, content=source.content(), first=self.first)
        questions = run.node(f"{name}/questions", asked, rows=count)
        n = self.best_of or 1
        sampling = Sampling(
            K=n,
            temperature=self.temperature,
            top_p=1,
            max_new_tokens=self.max_new_tokens,
            max_prompt_tokens=self.max_prompt_tokens,
        )
        # Greedy answers draw nothing, so runs of all seeds share them.
        generate = run.generate(sampling, seed=run.seed * run.SEEDS_PER_RUN + SEED if self.temperature else 0)
        generate = replace(generate, key=f"benchmark.{name}")
        scores = IFEvalScores(confidence=run.held_out.confidence, key=f"benchmark.{name}")
        for policy, its in chosen(policies, self.of, f"benchmark.{name}.of").items():
            at, size = f"{policy}/{name}", {"rows": count, "work": count * n, "kind": "ifeval_answers"}
            sampled = run.node(f"{at}/answers", generate, (questions, its.policy), **size, job="evaluation")
            answers = best_of(at, run, sampled, count, n)
            yield answers
            yield run.node(f"{policy}/{name}/{SCORES}", scores, (questions, answers), rows=count, job="evaluation")

    def _source(self) -> Source:
        is_file = Path(self.path).is_file() or Path(self.path).suffix in READERS
        return Source(path=self.path, split=None if is_file else SPLIT, revision=self.revision, rows=PROMPTS)
