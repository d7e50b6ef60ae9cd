"""benchmark=open_llm_v1: tasks of the Open LLM Leaderboard, by lm-eval in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, PositiveInt

from src.data.source import Source, read_columns
from src.evaluation.benchmark import SCORES, Measure, Planner, Policies, Scored, chosen, version_of
from src.evaluation.open_llm.columns import AVERAGE, Column, read_results, score_columns
from src.kernel.artifact import WORK, Node, Stage, Takes
from src.kernel.config import Confidence, Device, Free, UserError, YamlPath, config
from src.kernel.processes import prepare_child
from src.kernel.rows import Row, schema, write_metrics, write_rows
from src.modeling.policy import Precision

DONE = "done"
RESULTS = "results"
"""Entries of a column's folder: a mark that the column is done, and the folder that lm-eval writes."""
ITEMS = schema(
    item_id=pa.string(),  # task/number of the item in it
    score=pa.float64(),  # the column's first metric, in [0, 1]; what guessing gets is not subtracted
    column=pa.string(),  # key of the column
    task=pa.string(),
)


@config
class Asked:
    """What lm-eval is told."""

    columns: Annotated[tuple[Column, ...], Field(strict=False, min_length=1)]
    chat_template: bool
    """Questions and solved examples are turns of a chat."""
    dtype: Precision
    """Precision of weights and products."""
    first: PositiveInt | None
    """Items of each task; null: all."""
    batch_size: Free[PositiveInt | Literal["auto"]]
    """Items at a time on the device."""


@config
class OpenLLM(Asked):
    title: str
    """The name in published tables; columns of your own need another."""
    of: list[str] | None
    """Policies, such as [base, it3]; null: all."""
    include_path: YamlPath | None
    """Folder with tasks of your own, in lm-eval's YAML; null: none."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (Measure(AVERAGE, AVERAGE), *(Measure(column.key, column.title) for column in self.columns))

    def nodes(self, name: str, run: Planner, policies: Policies) -> Iterator[Node]:
        key = f"benchmark.{name}"
        stage = LmEval(
            **{name: getattr(self, name) for name in Asked.__annotations__},
            confidence=run.held_out.confidence,
            lm_eval=version_of("lm-eval"),
            own_tasks=_hash(f"{key}.include_path", self.include_path) if self.include_path else "",
            include_path=self.include_path,
            device=run.machine.device,
        )
        for policy, entry in chosen(policies, self.of, f"{key}.of").items():
            yield run.node(f"{policy}/{name}/{SCORES}", stage, (entry.policy,), work=None, job="evaluation")

    def score_files(self, name: str, paths: Sequence[Path], confidence: float) -> list[Scored]:
        """Compute the columns and their average of the one model of these result files of lm-eval."""
        results = read_results(paths, self.chat_template)
        return [Scored(results.model, dict(score_columns(results, self.columns, confidence)))]


def _hash(key: str, folder: Path) -> str:
    """Return a hash of all files of a folder."""
    if not folder.is_dir():
        raise UserError(f"{key}: no folder {folder}")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    parts = [(str(path.relative_to(folder)), path.read_bytes()) for path in files]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@config
class LmEval(Asked, Stage):
    """Runs lm-eval on each column of a leaderboard.

    In: policy. Out: a row an item, `metrics.json` in percent, and lm-eval's results of each column, `<key>.json`. A
    column that is done, and lm-eval's cache of requests, stay when the stage is killed.
    """

    kind: ClassVar[str] = "lm_eval_scores"
    resumable: ClassVar[bool] = True

    confidence: Confidence
    """Level of the intervals."""
    lm_eval: str
    """Its version."""
    own_tasks: str
    """Hash of the files of `include_path`; empty: there are none."""
    include_path: Free[YamlPath | None]
    device: Free[Device]

    def takes(self) -> Takes:
        return Takes("hardware.devices.device", cuda=self.device == "cuda")

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows, files = list[Row](), list[Path]()
        for column in self.columns:
            folder = (out / WORK / column.key).resolve()
            if not (folder / DONE).exists():
                shutil.rmtree(folder / RESULTS, ignore_errors=True)
                folder.mkdir(parents=True, exist_ok=True)
                self._run(column, inputs[0].resolve(), folder)
            (results,) = (folder / RESULTS).rglob("results_*.json")
            files.append(Path(shutil.copyfile(results, out / f"{column.key}.json")))
            metric, _, wanted = column.metric.partition(",")
            for samples in sorted((folder / RESULTS).rglob("samples_*.jsonl")):
                task = samples.stem.removeprefix("samples_").rpartition("_")[0]
                for _, sample in read_columns(Source(path=str(samples)), ("doc_id", "filter", metric)):
                    if sample["filter"] == wanted:
                        item = {"item_id": f"{task}/{sample['doc_id']}", "score": float(sample[metric])}
                        rows.append(item | {"column": column.key, "task": task})
        results = read_results(files, self.chat_template, limited=self.first is not None)
        write_rows(out, rows, ITEMS)
        write_metrics(out, score_columns(results, self.columns, self.confidence) | {"items": len(rows)})

    def _run(self, column: Column, policy: Path, folder: Path) -> None:
        """Run lm-eval on a column; its output goes to `folder/log`. Raises UserError when it fails."""
        settings, log = folder / "config.yaml", folder / "log"
        settings.write_text(json.dumps(self.settings(column, policy, folder), indent=1))
        print(f"lm-eval: {column.title}; it writes to {log}", flush=True)
        with log.open("wb") as file:
            code = subprocess.run(
                [sys.executable, "-m", "lm_eval", "run", "--config", str(settings)],
                cwd=folder,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=prepare_child,
            ).returncode
        if code or not list((folder / RESULTS).rglob("results_*.json")):  # lm-eval only warns of unwritten ones
            last = log.read_text(errors="replace").strip().rpartition("\n")[2] or "it said nothing"
            why = f"exit code {code}: {last} ({log}); what was answered is kept, the same command resumes"
            raise UserError(f"{column.title}: lm-eval left no results, {why}")
        (folder / DONE).touch()

    def settings(self, column: Column, policy: Path, folder: Path) -> dict[str, Any]:
        """Build the file of `lm_eval run --config`."""
        settings = {
            "model": "hf",
            "model_args": {"pretrained": str(policy), "dtype": self.dtype},
            "tasks": [column.task],
            "num_fewshot": column.shots,
            "seed": [0, 1234, 1234, 1234],  # lm-eval's own: Python, numpy, torch, which examples are shown
            "use_cache": str(folder / "requests"),
            "output_path": str(folder / RESULTS),
            "log_samples": True,
            "apply_chat_template": self.chat_template or None,
            "fewshot_as_multiturn": self.chat_template or None,
            "device": self.device,
            "batch_size": self.batch_size,
            "limit": self.first,
            "include_path": str(self.include_path.resolve()) if self.include_path else None,
        }
        return {name: value for name, value in settings.items() if value is not None}
