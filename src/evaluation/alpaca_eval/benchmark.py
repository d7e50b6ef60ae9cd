"""benchmark=alpaca_eval: AlpacaEval 2, judged by alpaca-eval's own annotator against gpt4_1106_preview."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import PositiveInt

from src.evaluation.alpaca_eval import files
from src.evaluation.alpaca_eval.files import HubFile, instruction_id, official_ids, read_outputs, write_json
from src.evaluation.alpaca_eval.judge import AlpacaEvalAnnotations, AlpacaEvalJudge
from src.evaluation.alpaca_eval.scores import LC, AlpacaEvalScores, scores
from src.evaluation.benchmark import SCORES, SEED, Measure, Numbers, Planner, Policies, Several, best_answers, chosen
from src.generation.engine import Sampling
from src.kernel.artifact import Node
from src.kernel.config import Free, UserError, YamlPath, config
from src.kernel.rows import PROMPTS, RESPONSES, read_rows, write_metrics, write_rows

BASELINE_FILE, GAMED_FILE = "alpaca_eval_gpt4_baseline.json", "df_gamed.csv"
"""In the data set."""
DEFAULT = "default"


@config
class AlpacaEval:
    title: ClassVar[str] = "AlpacaEval 2"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure(LC, "LC win rate"),
        Measure("win_rate", "win rate"),
        Measure("avg_length", "characters", 0),
    )

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
    judge: AlpacaEvalJudge

    def __post_init__(self) -> None:
        if DEFAULT not in self.decodings:
            raise ValueError(f"decodings: has no {DEFAULT}, for experiments and models that it does not name")
        if wrong := next((name for name, one in self.decodings.items() if one.K != 1), None):
            raise ValueError(f"decodings.{wrong}.K: must be 1; for the best of several, give best_of")

    def nodes(self, name: str, run: Planner, policies: Policies) -> Iterator[Node]:
        key, system = f"benchmark.{name}", run.experiment or run.model_name
        baseline = self._file(BASELINE_FILE, self.baseline, f"{key}.baseline")
        count = self._count(baseline.local, key)
        questions = run.node(f"{name}/questions", AlpacaEvalQuestions(baseline=baseline, first=self.first), rows=count)
        control: tuple[Node, ...] = ()
        if self.length_control:
            gamed = AlpacaEvalGamed(file=self._file(GAMED_FILE, self.gamed, f"{key}.gamed"))
            control = (run.node(f"{name}/gamed", gamed),)
        decoding = next(one for one in (run.experiment, run.model_name, DEFAULT) if one in self.decodings)
        sampling = dataclasses.replace(self.decodings[decoding], K=self.best_of or 1)
        decoding_key = f"{key}.decodings.{decoding}"
        generate = run.generate(sampling, run.seed_of(SEED))
        judge = AlpacaEvalAnnotations(judge=self.judge, key=f"{key}.judge")
        for policy, entry in chosen(policies, self.of, f"{key}.of").items():
            at = f"{policy}/{name}"
            inputs = (questions, entry.policy)
            answers = best_answers(f"{at}/answers", at, run, generate, inputs, "alpaca_eval_answers")
            stage = AlpacaEvalOutputs(generator=f"{system}-{policy}", key=decoding_key)
            outputs = run.node(f"{at}/outputs", stage, (answers, questions), rows=count, job="evaluation")
            size = {"rows": count, "work": count, "by": self.judge.endpoint.model}
            annotations = run.node(f"{at}/annotations", judge, (outputs,), **size, job="judging")
            yield annotations
            stage = AlpacaEvalScores(confidence=run.confidence)
            yield run.node(f"{at}/{SCORES}", stage, (annotations, *control), rows=count, job="judging")

    def score_files(self, name: str, paths: Sequence[Path], confidence: float) -> dict[str, Numbers]:
        """Score annotations in the official format, each file by itself: of the baseline's instructions, or all 805."""
        gamed = self._file(GAMED_FILE, self.gamed, f"benchmark.{name}.gamed") if self.length_control else None
        control = files.read_gamed(gamed.fetch()) if gamed else None
        rows = {path: files.read_joined(path, self.baseline) for path in paths}
        return {str(path): dict(scores(path, rows[path], control, confidence).metrics) for path in paths}

    def _count(self, local: Path | None, key: str) -> int:
        """Count the instructions: those of a local baseline, else the leaderboard's."""
        if local is None:
            return min(self.first or len(official_ids()), len(official_ids()))
        instructions = [row.instruction for row in read_outputs(local)][: self.first]
        if self.length_control and not {*map(instruction_id, instructions)} <= {*official_ids()}:
            raise UserError(
                f"{key}.length_control: {local} has instructions that are not the leaderboard's, whose difficulty is "
                "not known: set it to false"
            )
        return len(instructions)

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
        write_rows(out, prompts, PROMPTS)
        write_json(out / files.BASELINE, rows)


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
        responses = {row["prompt_id"]: row["responses"][0] for row in read_rows(answers, RESPONSES)}
        baseline = read_outputs(questions / files.BASELINE)
        missing = [row.instruction for row in baseline if instruction_id(row.instruction) not in responses]
        if missing:
            raise UserError(
                f"{self.key}.max_prompt_tokens: {len(missing)} of {len(baseline)} instructions have more, so there is "
                f"no answer to them, the first {missing[0]!r:.80}; raise it"
            )
        rows, finished = [], 0
        for row in baseline:
            answer = responses[instruction_id(row.instruction)]
            # The library strips too: a trailing newline is neither judged nor counted as length.
            rows.append(dataclasses.replace(row, output=answer["text"].strip(), generator=self.generator))
            finished += answer["finish_reason"] == "stop"
        write_json(out / files.OUTPUTS, rows)
        shutil.copyfile(questions / files.BASELINE, out / files.BASELINE)
        numbers = {
            "items": len(rows),
            "characters": sum(len(row.output) for row in rows) / len(rows),
            "finished": finished / len(rows),
            "empty": sum(not row.output for row in rows) / len(rows),
        }
        write_metrics(out, numbers)
