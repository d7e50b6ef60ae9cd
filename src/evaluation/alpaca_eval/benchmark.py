"""benchmark=alpaca_eval: AlpacaEval 2, judged by alpaca-eval's own annotator against gpt4_1106_preview."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from pydantic import PositiveInt

from src.evaluation.alpaca_eval import files
from src.evaluation.alpaca_eval.files import HubFile, Output, instruction_id, official_ids, read_official, write_json
from src.evaluation.alpaca_eval.judge import ANNOTATOR, AlpacaEvalAnnotations, AlpacaEvalJudge
from src.evaluation.alpaca_eval.scores import LC, AlpacaEvalScores, scores
from src.evaluation.answers import Several, best_answers, describe, only_answers
from src.evaluation.benchmark import SCORES, SEED, Measure, Planner, Policies, Scored, chosen, prompt_row
from src.generation.engine import Sampling
from src.kernel.artifact import Node, Stage
from src.kernel.config import Free, UserError, config
from src.kernel.rows import PROMPTS, write_metrics, write_rows

BASELINE_FILE, GAMED_FILE = "alpaca_eval_gpt4_baseline.json", "df_gamed.csv"
"""Names in the data set."""


@config
class AlpacaEval:
    title: ClassVar[str] = "AlpacaEval 2"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure(LC, "LC win rate"),
        Measure("win_rate", "win rate"),
        Measure("avg_length", "characters", 0),
    )

    repo: str
    """Hub id of the data set, or a folder with files of its names: the baseline's outputs, on any prompts, df_gamed."""
    revision: str | None
    """Commit, tag or branch of the hub id; null: main."""
    length_control: bool
    """False: no length-controlled win rate, which needs `df_gamed.csv` and the leaderboard's instructions."""
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
        if "default" not in self.decodings:
            raise ValueError("decodings: has no default, for experiments and models that it does not name")
        if wrong := next((name for name, one in self.decodings.items() if one.K != 1), None):
            raise ValueError(f"decodings.{wrong}.K: must be 1; for the best of several, give best_of")

    def nodes(self, name: str, run: Planner, policies: Policies) -> Iterator[Node]:
        key, system = f"benchmark.{name}", run.experiment or run.model.name
        baseline = self._file(BASELINE_FILE, key)
        count = len(self._instructions(baseline.local, key))
        questions = run.node(f"{name}/questions", AlpacaEvalQuestions(baseline=baseline, first=self.first), rows=count)
        control: tuple[Node, ...] = ()
        if self.length_control:
            control = (run.node(f"{name}/gamed", AlpacaEvalGamed(file=self._file(GAMED_FILE, key))),)
        decoding = next((one for one in (run.experiment, run.model.name) if one in self.decodings), "default")
        sampling = replace(self.decodings[decoding], K=self.best_of or 1)
        decoding_key = f"{key}.decodings.{decoding}"
        generate = run.generate(sampling, run.seed_of(SEED), decoding_key)
        judge = AlpacaEvalAnnotations(judge=self.judge, key=f"{key}.judge")
        score = AlpacaEvalScores(confidence=run.held_out.confidence)
        for policy, entry in chosen(policies, self.of, f"{key}.of").items():
            at = f"{policy}/{name}"
            answers = best_answers(f"{at}/answers", run, generate, (questions, entry.policy), "alpaca_eval_answers")
            stage = AlpacaEvalOutputs(generator=f"{system}-{policy}", key=decoding_key)
            outputs = run.node(f"{at}/outputs", stage, (answers, questions), rows=count, job="evaluation")
            model = self.judge.endpoint.model
            annotations = run.node(f"{at}/annotations", judge, (outputs,), count, count, by=model, job="judging")
            yield run.node(f"{at}/{SCORES}", score, (annotations, *control), rows=count, job="judging")

    def score_files(self, name: str, paths: Sequence[Path], confidence: float) -> list[Scored]:
        """Score annotations of the 805 instructions in the official format, each file by itself."""
        gamed = self._file(GAMED_FILE, f"benchmark.{name}")
        control = files.read_gamed(gamed.fetch()) if self.length_control else None
        scored = []
        for path in paths:
            rows = files.joined(path, read_official(path, files.Annotation), official_ids())
            if len({(row.generator_2, row.annotator) for row in rows}) > 1:
                raise UserError(f"{path}: outputs of several models or annotators; give each a file of its own")
            model, judge = rows[0].generator_2, rows[0].annotator
            numbers, baseline = scores(path, rows, control, confidence)[0], files.BASELINE_MODEL
            ties = sum(row.preference == 1.5 and row.output_1 != row.output_2 for row in rows)
            reasons = {
                f"{ties} ties of unlike outputs, which that annotator does not give": ties > 0.01 * len(rows),
                f"judged by {judge}, not {ANNOTATOR}": judge != ANNOTATOR,
                "generator_2 is the baseline": model == baseline or files.are_official(row.output_2 for row in rows),
                f"generator_1 is not {baseline}": {row.generator_1 for row in rows} != {baseline},
                f"output_1 is not {baseline}'s": not files.are_official(row.output_1 for row in rows),
            }
            why = ", ".join(reason for reason, is_so in reasons.items() if is_so)
            scored.append(Scored(f"{path}: {model}, judged by {judge}", {**numbers}, why))
        return scored

    def _instructions(self, local: Path | None, key: str) -> list[str]:
        """Return the ids of the instructions: those of a local baseline, else the leaderboard's.

        Raises UserError where lengths are controlled and a difficulty is not known, before a judge is paid.
        """
        ids = [instruction_id(row.instruction) for row in read_official(local, Output)] if local else official_ids()
        if self.length_control and not {*ids[: self.first]} <= {*official_ids()}:
            what = f"{local} has instructions that are not the leaderboard's, whose difficulty is not known"
            raise UserError(f"{key}.length_control: {what}; set it to false")
        return list(ids[: self.first])

    def _file(self, file: str, key: str) -> HubFile:
        return HubFile(repo=self.repo, name=file, revision=self.revision, key=f"{key}.repo")


@config
class AlpacaEvalQuestions(Stage):
    """Takes the instructions of a file of outputs, in its order, or the first of them.

    Out: PROMPTS rows, and `reference_outputs.json` with the baseline's outputs, in the official format.
    """

    kind: ClassVar[str] = "alpaca_eval_questions"

    baseline: HubFile
    """Outputs of the model that all are compared with."""
    first: PositiveInt | None
    """The first so many; null: all."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows = read_official(self.baseline.fetch(), Output)[: self.first]
        write_rows(out, [prompt_row([row.instruction], row.dataset) for row in rows], PROMPTS)
        write_json(out / files.BASELINE, rows)


@config
class AlpacaEvalGamed(Stage):
    """Fetches judgments of the baseline, prompted to be short or long, against itself.

    The file also has the difficulty of the instructions.
    """

    kind: ClassVar[str] = "alpaca_eval_gamed"

    file: HubFile

    def __call__(self, *inputs: Path, out: Path) -> None:
        path = self.file.fetch()
        files.read_gamed(path)
        shutil.copyfile(path, out / files.GAMED)


@config
class AlpacaEvalOutputs(Stage):
    """Writes a policy's answers as an official file of outputs, beside the baseline's.

    In: RESPONSES with one answer per prompt, questions. Out: `model_outputs.json`, which is a submission to the
    leaderboard, `reference_outputs.json` and `metrics.json`.
    """

    kind: ClassVar[str] = "alpaca_eval_outputs"

    generator: str
    """The policy's name in the file."""
    key: Free[str]
    """Config key of the decoding, for messages."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        responses, questions = inputs
        baseline = read_official(questions / files.BASELINE, Output)
        answers = only_answers([responses], [instruction_id(row.instruction) for row in baseline], self.key)
        # The library strips too: a trailing newline is neither judged nor counted as length.
        rows = [
            replace(row, output=answer["text"].strip(), generator=self.generator)
            for row, answer in zip(baseline, answers, strict=True)
        ]
        write_json(out / files.OUTPUTS, rows)
        shutil.copyfile(questions / files.BASELINE, out / files.BASELINE)
        write_metrics(out, describe(answers))
