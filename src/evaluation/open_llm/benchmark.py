"""benchmark=open_llm_v1 and open_llm_v2: tasks of the Open LLM Leaderboards, by lm-eval in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, PositiveInt

from src.data.source import Source, read_columns
from src.evaluation.benchmark import SCORES, Measure, Numbers, Planner, Policies, chosen
from src.evaluation.ifeval import copy_punkt
from src.evaluation.open_llm.columns import AVERAGE, Column, read_results, score_columns
from src.kernel.artifact import WORK, Node, Takes
from src.kernel.config import Confidence, Device, Free, UserError, YamlPath, config
from src.kernel.processes import prepare_child
from src.kernel.rows import Row, write_metrics, write_rows
from src.modeling.policy import Precision

DONE = "done"
RESULTS = "results"
"""In the folder of a column: whether it is done, and what lm-eval wrote."""
ITEMS = pa.schema(
    {
        "item_id": pa.string(),  # task/number of the item in it
        "score": pa.float64(),  # the column's first metric, in [0, 1]; what guessing gets is not subtracted
        "column": pa.string(),  # key of the column
        "task": pa.string(),
    }
)
_VERSIONS = """
import json
from importlib.metadata import distributions
print(json.dumps({one.name.lower().replace("_", "-"): one.version for one in distributions()}))
"""


@config
class OpenLLM:
    title: str
    """As published tables call it; columns of your own deserve another."""
    columns: Annotated[tuple[Column, ...], Field(strict=False, min_length=1)]
    chat_template: bool
    """Questions and solved examples are turns of a chat."""
    dtype: Precision
    """Precision of weights and products."""
    first: PositiveInt | None
    """Items of each task; null: all."""
    of: list[str] | None
    """Policies, such as [base, it3]; null: all."""
    batch_size: PositiveInt | Literal["auto"]
    """Items at a time on each device."""
    include_path: YamlPath | None
    """Folder with tasks of your own, in lm-eval's YAML; null: none."""
    python: YamlPath | None
    """Python of an environment with lm-eval; null: this one."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (Measure(AVERAGE, AVERAGE), *(Measure(column.key, column.title) for column in self.columns))

    def nodes(self, name: str, run: Planner, policies: Policies) -> Iterator[Node]:
        machine, python = run.machine, self.python or Path(sys.executable)
        stage = LmEval(
            columns=self.columns,
            chat_template=self.chat_template,
            dtype=self.dtype,
            first=self.first,
            confidence=run.confidence,
            lm_eval=check_environment(f"benchmark.{name}.python", python, self.columns),
            own_tasks=_content(f"benchmark.{name}.include_path", self.include_path),
            include_path=self.include_path,
            python=self.python,
            device=machine.device,
            devices=machine.devices,
            batch_size=self.batch_size,
        )
        for policy, entry in chosen(policies, self.of, f"benchmark.{name}.of").items():
            yield run.node(f"{policy}/{name}/{SCORES}", stage, (entry.policy,), work=None, job="evaluation")

    def score_files(self, name: str, paths: Sequence[Path], confidence: float) -> dict[str, Numbers]:
        """Compute the columns and their average of the one model of these result files of lm-eval."""
        results = read_results(paths, self.chat_template)
        return {results.model: dict(score_columns(results, self.columns, confidence))}


@cache
def installed(python: Path) -> dict[str, str]:
    """Ask an interpreter for the versions of its packages. Raises UserError where it does not say."""
    try:
        return json.loads(subprocess.check_output([python, "-c", _VERSIONS], stderr=subprocess.DEVNULL))
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise UserError(f"{python}: no Python that says which packages it has ({error})") from None


def check_environment(key: str, python: Path, columns: tuple[Column, ...]) -> str:
    """Return the version of lm-eval there. Raises UserError, naming the config's `key`, where a column cannot run."""
    versions = installed(python)
    for name, begins in {"lm-eval": ""}.items() | {one for column in columns for one in column.needs.items()}:
        if name not in versions or not versions[name].startswith(begins):
            raise UserError(
                f"{key}: needs {name} {begins}".rstrip() + f", and {python} has {versions.get(name)}; `make install` "
                "brings lm-eval, but Hydra keeps antlr4 at another version: make an environment apart, "
                "pip install 'lm-eval[hf,math,ifeval]==0.4.13' there, and give its bin/python here"
            )
    return versions["lm-eval"]


@config
class LmEval:
    """In: policy. Out: a row an item, `metrics.json` in percent, and what lm-eval wrote of each column, `<key>.json`.

    A column that is done, and lm-eval's cache of requests, stay when the stage is killed.
    """

    kind: ClassVar[str] = "lm_eval_scores"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    columns: tuple[Column, ...]
    chat_template: bool
    """Questions and solved examples are turns of a chat."""
    dtype: Precision
    """Precision of weights and products."""
    first: PositiveInt | None
    """Items of each task; null: all."""
    confidence: Confidence
    """Level of the intervals."""
    lm_eval: str
    """Its version."""
    own_tasks: str
    """What the files of `include_path` say; empty: there are none."""
    include_path: Free[YamlPath | None]
    python: Free[YamlPath | None]
    """Python of an environment with lm-eval; null: this one."""
    device: Free[Device]
    devices: Free[PositiveInt]
    """Devices of this machine; several share the items of a task."""
    batch_size: Free[PositiveInt | Literal["auto"]]

    def takes(self) -> Takes:
        return Takes("hardware.devices.device", self.devices, cuda=self.device == "cuda")

    def __call__(self, *inputs: Path, out: Path) -> None:
        (policy,) = inputs
        rows, files = [], []
        for column in self.columns:
            folder = (out / WORK / column.key).resolve()
            if not (folder / DONE).exists():
                shutil.rmtree(folder / RESULTS, ignore_errors=True)
                folder.mkdir(parents=True, exist_ok=True)
                self._run(column, policy.resolve(), folder)
            (results,) = (folder / RESULTS).rglob("results_*.json")
            for samples in sorted((folder / RESULTS).rglob("samples_*.jsonl")):
                rows += _items(column, samples)
            files.append(shutil.copyfile(results, out / f"{column.key}.json"))
        results = read_results(files, self.chat_template, limited=self.first is not None)
        write_rows(out, rows, ITEMS)
        write_metrics(out, score_columns(results, self.columns, self.confidence) | {"items": len(rows)})

    def _run(self, column: Column, policy: Path, folder: Path) -> None:
        """Run lm-eval on a column; what it says goes to `folder/log`. Raises UserError when it fails."""
        settings, log = folder / "config.yaml", folder / "log"
        settings.write_text(json.dumps(self.settings(column, policy, folder), indent=1))
        if "ifeval" in column.task:  # it would fetch it
            copy_punkt(folder / "nltk")
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "NLTK_DATA": str(folder / "nltk")}
        print(f"lm-eval: {column.title}; it writes to {log}", flush=True)
        with (
            log.open("wb") as file,
            subprocess.Popen(
                self.command(settings),
                cwd=folder,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=prepare_child,
            ) as process,
        ):
            try:
                process.wait()
            finally:
                process.terminate()  # accelerate ends its processes then
        if process.returncode or not list((folder / RESULTS).rglob("results_*.json")):  # unwritten ones are a warning
            lines = log.read_text(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
            raise UserError(
                f"{column.title}: lm-eval left no results, exit code {process.returncode}: {last} ({log}); "
                "what was answered is kept, the same command goes on"
            )
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

    def command(self, settings: Path) -> list[str]:
        """Build the command: on one device, or through `accelerate launch` on each of several."""
        python, module = str(self.python or sys.executable), ["lm_eval", "run", "--config", str(settings)]
        count = 1
        if self.device == "cuda":
            import torch

            count = min(self.devices, torch.cuda.device_count())  # a job may have fewer than its machine
        if count <= 1:
            return [python, "-m", *module]
        accelerate = settings.with_name("accelerate.json")  # not what the user once told `accelerate config`
        accelerate.write_text(json.dumps({"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU"}))
        launch = ["accelerate.commands.launch", "--config_file", str(accelerate), "--multi_gpu"]
        launch += ["--num_processes", str(count), "--num_machines", "1", "--main_process_port", "0"]
        return [python, "-m", *launch, "--mixed_precision", "no", "--dynamo_backend", "no", "--module", *module]


def _items(column: Column, file: Path) -> Iterator[Row]:
    """Yield ITEMS rows from a file of samples: a line an item and filter."""
    task = file.stem.removeprefix("samples_").rpartition("_")[0]
    metric, _, wanted = column.metrics[0].partition(",")
    for _, sample in read_columns(Source(path=str(file)), ("doc_id", "filter", metric)):
        if sample["filter"] == wanted:
            item = f"{task}/{sample['doc_id']}"
            yield {"item_id": item, "score": float(sample[metric]), "column": column.key, "task": task}


def _content(key: str, folder: Path | None) -> str:
    """Hash the files of tasks and what lies beside them."""
    if folder is None:
        return ""
    if not folder.is_dir():
        raise UserError(f"{key}: no folder {folder}")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    parts = [(str(path.relative_to(folder)), path.read_bytes()) for path in files]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
