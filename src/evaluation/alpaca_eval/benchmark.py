"""benchmark=alpaca_eval: AlpacaEval 2, judged by alpaca-eval's own annotator against gpt4_1106_preview."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import PositiveInt

from src.evaluation.alpaca_eval import files, length_control, library
from src.evaluation.alpaca_eval.files import HubFile, instruction_id, official_ids, read_outputs, write_rows
from src.evaluation.alpaca_eval.judge import AlpacaEvalAnnotations, AlpacaEvalJudge
from src.evaluation.alpaca_eval.scores import AlpacaEvalScores, score_file
from src.evaluation.benchmark import SCORES, SEED, Measure, Numbers, Planner, Policies, Policy, chosen
from src.evaluation.best_of import Several, best_of
from src.evaluation.foreign_rows import shortened
from src.generation.engine import Sampling
from src.kernel import rows as kernel_rows
from src.kernel.artifact import Node
from src.kernel.config import Free, Label, UserError, YamlPath, config
from src.kernel.rows import PROMPTS, RESPONSES, read_rows, write_metrics

BASELINE_FILE, GAMED_FILE = "alpaca_eval_gpt4_baseline.json", "df_gamed.csv"
"""In the data set."""
DEFAULT = "default"


@config
class AlpacaEval:
    published: ClassVar[str] = "alpaca_eval"
    no_matter: ClassVar[tuple[str, ...]] = (
        *("repo", "revision", "baseline", "gamed", "length_control", "of", "best_of", "generator", "max_prompt_tokens"),
    )
    scored_by: ClassVar[tuple[str, ...]] = ("repo", "revision", "baseline", "length_control", "gamed")

    repo: str
    """Hub id of the data set, or a folder with its files."""
    revision: str | None
    """Commit, tag or branch of the hub id; null: main."""
    baseline: YamlPath | None
    """Outputs of another baseline, or of prompts of one's own, in the official format; null: the data set's."""
    length_control: bool
    """False: no length-controlled win rate, which needs `gamed` and the leaderboard's instructions."""
    gamed: YamlPath | None
    """df_gamed.csv; null: the data set's."""
    first: PositiveInt | None
    """The first so many instructions; null: all."""
    of: list[str] | None
    """Policies, such as [base, it3]; null: all."""
    decodings: dict[str, Sampling]
    """Name of an experiment, else of a model, else `default` -> how its policies answer."""
    best_of: Several | None
    """Answers an instruction, of which the run's ranker keeps the best; null: one, unranked."""
    generator: Label | None
    """Before the policy's name in the outputs; null: the experiment's, else the model's."""
    judge: AlpacaEvalJudge

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

    def nodes(self, name: str, run: Planner, policies: Policies) -> Iterator[Node]:
        library.check_installed()
        key = f"benchmark.{name}"
        baseline = self._file(BASELINE_FILE, self.baseline, f"{key}.baseline")
        count = self._count(baseline.local, key)
        questions = run.node(f"{name}/questions", AlpacaEvalQuestions(baseline=baseline, first=self.first), rows=count)
        control: tuple[Node, ...] = ()
        if self.length_control:
            length_control.check_installed()
            control = (
                run.node(f"{name}/gamed", AlpacaEvalGamed(file=self._file(GAMED_FILE, self.gamed, f"{key}.gamed"))),
            )
        for policy, entry in chosen(policies, self.of, f"{key}.of").items():
            annotations = self._annotations(name, run, policy, entry, questions)
            yield annotations
            scores = AlpacaEvalScores(confidence=run.confidence)
            yield run.node(f"{policy}/{name}/{SCORES}", scores, (annotations, *control), rows=count, job="judging")

    def _annotations(self, name: str, run: Planner, policy: str, entry: Policy, questions: Node) -> Node:
        at, count, n = f"{policy}/{name}", questions.rows, self.best_of or 1
        decoding = next(one for one in (run.experiment, run.model_name, DEFAULT) if one in self.decodings)
        key, sampling = f"benchmark.{name}.decodings.{decoding}", self.decodings[decoding]
        generate = run.generate(dataclasses.replace(sampling, K=n), run.seed_of(SEED))
        generate = dataclasses.replace(generate, key=key)
        size = {"rows": count, "work": count * n, "kind": "alpaca_eval_answers"}
        answers = run.node(f"{at}/answers", generate, (questions, entry.policy), **size, job="evaluation")
        best = best_of(at, run, answers, count, n)
        generator = f"{self.generator or run.experiment or run.model_name}-{policy}"
        stage = AlpacaEvalOutputs(generator=generator, key=key)
        outputs = run.node(f"{at}/outputs", stage, (best, questions), rows=count, job="evaluation")
        judge = AlpacaEvalAnnotations(judge=self.judge, key=f"benchmark.{name}.judge")
        size = {"rows": count, "work": count, "by": self.judge.endpoint.model}
        return run.node(f"{at}/annotations", judge, (outputs,), **size, job="judging")

    def score_files(self, name: str, paths: Sequence[Path], confidence: float) -> dict[str, Numbers]:
        """Scores annotations in the official format, each file by itself."""
        gamed = self._file(GAMED_FILE, self.gamed, f"benchmark.{name}.gamed").fetch() if self.length_control else None
        return {str(path): dict(score_file(path, gamed, self.baseline, confidence).metrics) for path in paths}

    def _count(self, local: Path | None, key: str) -> int:
        """Counts the instructions: those of a local baseline, else the leaderboard's."""
        if local is None:
            return min(self.first or len(official_ids()), len(official_ids()))
        rows = read_outputs(local)[: self.first]
        foreign = [row.instruction for row in rows if instruction_id(row.instruction) not in official_ids()]
        if foreign and self.length_control:
            raise UserError(
                f"{key}.length_control: {local} has {len(foreign)} instructions that are not the leaderboard's, the "
                f"first {shortened(foreign[0])!r}; their difficulty is not known: set it to false"
            )
        return len(rows)

    def _file(self, file: str, path: Path | None, key: str) -> HubFile:
        return HubFile(repo=self.repo, name=file, revision=self.revision, path=path, key=key)


@config
class AlpacaEvalQuestions:
    """Takes the instructions of a file of outputs, in its order, or the first of them.

    Out: PROMPTS rows, and `reference_outputs.json` with the baseline's outputs, in the official format.
    """

    kind: ClassVar[str] = "alpaca_eval_questions"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    baseline: HubFile
    """Outputs of the model that all are compared with."""
    first: PositiveInt | None
    """The first so many; null: all."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows = read_outputs(self.baseline.fetch())[: self.first]
        prompts = [
            {
                "prompt_id": instruction_id(row.instruction),
                "messages": [{"role": "user", "content": row.instruction}],
                "source": row.dataset,
                "checks": "[]",
            }
            for row in rows
        ]
        kernel_rows.write_rows(out, prompts, PROMPTS)
        write_rows(out / files.BASELINE, rows)


@config
class AlpacaEvalGamed:
    """Brings the baseline told to be short, or long, judged against itself, with the difficulty of the instructions."""

    kind: ClassVar[str] = "alpaca_eval_gamed"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    file: HubFile

    def __call__(self, *inputs: Path, out: Path) -> None:
        path = self.file.fetch()
        files.read_gamed(path)
        shutil.copyfile(path, out / files.GAMED)


@config
class AlpacaEvalOutputs:
    """Writes a policy's answers as an official file of outputs, beside the baseline's.

    In: RESPONSES with one answer a prompt, questions. Out: `model_outputs.json`, which is a submission to the
    leaderboard, `reference_outputs.json` and `metrics.json`.
    """

    kind: ClassVar[str] = "alpaca_eval_outputs"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    generator: str
    """What the file calls the policy."""
    key: Free[str]
    """Config key of the decoding, for messages."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        answers, questions = inputs
        given = {row["prompt_id"]: row["responses"] for row in read_rows(answers, RESPONSES)}
        baseline = read_outputs(questions / files.BASELINE)
        missing = [row.instruction for row in baseline if instruction_id(row.instruction) not in given]
        if missing:
            raise UserError(
                f"{self.key}.max_prompt_tokens: {len(missing)} of {len(baseline)} instructions have more, so there is "
                f"no answer to them, the first {shortened(missing[0])!r}; raise it"
            )
        rows, finished = [], 0
        for row in baseline:
            (answer,) = given[instruction_id(row.instruction)]
            # The library strips too: a trailing newline is neither judged nor counted as length.
            rows.append(row._replace(output=answer["text"].strip(), generator=self.generator))
            finished += answer["finish_reason"] == "stop"
        write_rows(out / files.OUTPUTS, rows)
        shutil.copyfile(questions / files.BASELINE, out / files.BASELINE)
        numbers = {
            "items": len(rows),
            "characters": sum(len(row.output) for row in rows) / len(rows),
            "finished": finished / len(rows),
            "empty": sum(not row.output for row in rows) / len(rows),
        }
        write_metrics(out, numbers)
