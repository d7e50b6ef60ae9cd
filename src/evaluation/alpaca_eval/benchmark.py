"""benchmark=alpaca_eval: AlpacaEval 2, judged by alpaca-eval's own annotator against gpt4_1106_preview."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveInt

from src.evaluation.alpaca_eval import length_control, library
from src.evaluation.alpaca_eval.annotations import generator_of, instruction_id, official_ids, read_outputs, shortened
from src.evaluation.alpaca_eval.hub_file import HubFile
from src.evaluation.alpaca_eval.judge import AlpacaEvalAnnotationFile, AlpacaEvalAnnotations, AlpacaEvalJudge
from src.evaluation.alpaca_eval.outputs import AlpacaEvalOutputs
from src.evaluation.alpaca_eval.questions import AlpacaEvalGamed, AlpacaEvalQuestions
from src.evaluation.alpaca_eval.score import AlpacaEvalScores, score_file
from src.evaluation.best_of import Several, best_of
from src.evaluation.plan import SCORES, Measure, Policies, Policy, chosen, judged, other, part_of, together
from src.evaluation.results import Numbers
from src.generation.contract import Sampling, shape_of
from src.kernel.artifact import Node
from src.kernel.config import Label, UserError, YamlPath, config
from src.kernel.provenance import sha256

if TYPE_CHECKING:
    from src.experiment.run import Run

BASELINE_FILE, GAMED_FILE = "alpaca_eval_gpt4_baseline.json", "df_gamed.csv"
PUBLISHED_FIELDS = {
    "model": "gpt-4-1106-preview",
    "temperature": 1.0,
    "max_tokens": 1,
    "logprobs": True,
    "top_logprobs": 5,
    "extra_body": {},
}
"""Of requests to the judge."""
WPO = (0.7, 0.9, 4096, 50, 0.1, 0.1)
PUBLISHED_DECODINGS = {
    "default": (0.7, 0.9, 2048, None, 0.0, 0.0),
    "llama3_8b_instruct": (0.9, 1.0, 4096, None, 0.0, 0.0),
    "mistral_7b_snorkel_dpo": (0.5, 1.0, 2048, None, 0.0, 0.0),
    "gemma2_9b_it_wpo_hb": WPO,
    "gemma2_9b_it_dpo_hb": WPO,
}
"""Temperature, top_p, tokens, top_k, presence and frequency penalty; as conf/benchmark has them."""
SEED = 950
"""Of the answers, within a run's seeds."""
DEFAULT = "default"


@config
class AlpacaEval:
    published_items: ClassVar[int] = 805
    scored_by: ClassVar[tuple[str, ...]] = ("repo", "revision", "baseline", "length_control", "gamed")

    repo: str
    """Hub id of the data set, or a folder with its files."""
    revision: str | None
    """Of the hub id: commit, tag or branch; null: main."""
    baseline: YamlPath | None
    """Outputs of another baseline, or of prompts of one's own, in the official format; null: the data set's."""
    length_control: bool
    """False: no length-controlled win rate, which needs `gamed` and the leaderboard's instructions."""
    gamed: YamlPath | None
    """df_gamed.csv; null: the data set's."""
    first: PositiveInt | None
    """Null: all instructions."""
    of: list[str] | None
    """Policies, such as [base, it3]; null: all."""
    decodings: dict[str, Sampling]
    """Name of an experiment, else of a model, else `default` -> how its policies answer."""
    best_of: Several | None
    """Answers an instruction, of which the run's ranker keeps the best; null: one, unranked."""
    generator: Label | None
    """Before the policy's name in the outputs; null: the experiment's, else the model's."""
    judge: AlpacaEvalJudge
    annotations: dict[str, YamlPath]
    """Policy -> annotations that are there already, in place of its answers and of a judge."""

    def __post_init__(self) -> None:
        if DEFAULT not in self.decodings:
            raise ValueError(f"decodings: has no {DEFAULT}, for experiments and models that it does not name")
        if wrong := next((name for name, one in self.decodings.items() if one.K != 1), None):
            raise ValueError(f"decodings.{wrong}.K: must be 1; for the best of several, give best_of")

    @property
    def title(self) -> str:
        return "AlpacaEval 2"

    @property
    def measures(self) -> tuple[Measure, ...]:
        rest = (Measure("win_rate", "win rate"), Measure("avg_length", "characters", 0))
        return ((Measure("length_controlled_winrate", "LC win rate"),) if self.length_control else ()) + rest

    def departs(self, policy: str) -> str | None:
        if path := self.annotations.get(policy):  # neither answered nor judged here
            return together(f"annotations of {generator_of(path)}, which were brought", part_of(self.first))
        decodings = {
            name: (one.temperature, one.top_p, one.max_new_tokens, *shape_of(one))
            for name, one in self.decodings.items()
        }
        decoding = other("another decoding", decodings, PUBLISHED_DECODINGS)
        return together(decoding, judged(self.judge.fields(), PUBLISHED_FIELDS), part_of(self.first))

    def nodes(self, name: str, run: Run, policies: Policies) -> Iterator[Node]:
        key = f"benchmark.{name}"
        own = chosen(policies, self.of, f"{key}.of")
        if unknown := [policy for policy in self.annotations if policy not in own]:
            raise UserError(f"{key}.annotations: no policy {unknown[0]} is evaluated; there are {', '.join(own)}")
        count = self._count(key, fetched=self.baseline is not None or any(one not in self.annotations for one in own))
        asked = AlpacaEvalQuestions(
            baseline=self._file(BASELINE_FILE, self.baseline, f"{key}.baseline"), first=self.first
        )
        questions = run.node(f"{name}/questions", asked, rows=count)
        control: tuple[Node, ...] = ()
        if self.length_control:
            length_control.check_installed()
            gamed = AlpacaEvalGamed(file=self._gamed(key))
            control = (run.node(f"{name}/gamed", gamed),)
        for policy, its in own.items():
            path = self.annotations.get(policy)
            judged = self._judged(name, run, policy, its, questions) if path is None else None
            annotations = judged or self._read(name, run, policy, path, questions)
            yield annotations
            scores = AlpacaEvalScores(confidence=run.held_out.confidence)
            inputs = (annotations, *control)
            yield run.node(f"{policy}/{name}/{SCORES}", scores, inputs, rows=count, job="judging")

    def _judged(self, name: str, run: Run, policy: str, its: Policy, questions: Node) -> Node:
        library.check_installed()
        at, count = f"{policy}/{name}", questions.rows
        decoding, sampling = self.decoding(run.experiment, run.model.name)
        n = self.best_of or 1
        key = f"benchmark.{name}.decodings.{decoding}"
        generate = run.generate(dataclasses.replace(sampling, K=n), run.seed * run.SEEDS_PER_RUN + SEED)
        generate = dataclasses.replace(generate, key=key)
        size = {"rows": count, "work": count * n, "kind": "alpaca_eval_answers"}
        answers = run.node(f"{at}/answers", generate, (questions, its.policy), **size, job="evaluation")
        best = best_of(at, run, answers, count, n)
        called = f"{self.generator or run.experiment or run.model.name}-{policy}"
        stage = AlpacaEvalOutputs(generator=called, key=key)
        outputs = run.node(f"{at}/outputs", stage, (best, questions), rows=count, job="evaluation")
        judge = AlpacaEvalAnnotations(judge=self.judge, key=f"benchmark.{name}.judge")
        size = {"rows": count, "work": count, "by": self.judge.endpoint.model}
        return run.node(f"{at}/annotations", judge, (outputs,), **size, job="judging")

    def _read(self, name: str, run: Run, policy: str, path: Path | None, questions: Node) -> Node:
        """Where no baseline is named, the 805 are expected, for which nothing needs to be fetched."""
        assert path is not None
        inputs = () if self.baseline is None else (questions,)
        key = f"benchmark.{name}.annotations.{policy}"
        if not path.is_file():
            raise UserError(f"{key}: no file {path}")
        stage = AlpacaEvalAnnotationFile(path=path, content=sha256(path), first=self.first)
        return run.node(f"{policy}/{name}/annotations", stage, inputs, rows=questions.rows, job="judging")

    def score_files(self, name: str, paths: Sequence[Path], confidence: float) -> dict[str, Numbers]:
        """Of annotations in the official format, each file by itself."""
        gamed = self._gamed(f"benchmark.{name}").fetch() if self.length_control else None
        return {str(path): dict(score_file(path, gamed, self.baseline, confidence).metrics) for path in paths}

    def decoding(self, experiment: str | None, model: str) -> tuple[str, Sampling]:
        """The name of the one that applies, and what it says."""
        name = next(one for one in (experiment, model, DEFAULT) if one in self.decodings)
        return name, self.decodings[name]

    def _count(self, key: str, fetched: bool) -> int:
        """Instructions; those of a local baseline where it is to be had: annotations alone need none."""
        local = self._file(BASELINE_FILE, self.baseline, f"{key}.baseline").local if fetched else None
        if local is None:
            return min(self.first or len(official_ids()), len(official_ids()))
        asked = read_outputs(local)[: self.first]
        foreign = [row.instruction for row in asked if instruction_id(row.instruction) not in official_ids()]
        if foreign and self.length_control:
            raise UserError(
                f"{key}.length_control: {local} has {len(foreign)} instructions that are not the leaderboard's, the "
                f"first {shortened(foreign[0])}; their difficulty is not known: set it to false"
            )
        return len(asked)

    def _gamed(self, key: str) -> HubFile:
        file = self._file(GAMED_FILE, self.gamed, f"{key}.gamed")
        return dataclasses.replace(file, instead=f", or set {key}.length_control=false")

    def _file(self, file: str, path: Path | None, key: str) -> HubFile:
        return HubFile(repo=self.repo, name=file, revision=self.revision, path=path, key=key)
