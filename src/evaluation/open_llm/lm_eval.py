"""Scores of an Open LLM Leaderboard: lm-eval on a policy, a column at a time, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import PositiveInt

from src.evaluation.foreign_rows import shortened
from src.evaluation.ifeval.checker import copy_punkt
from src.evaluation.open_llm.columns import Column, score_files
from src.kernel.artifact import WORK, Takes
from src.kernel.config import Confidence, Device, Free, UserError, YamlPath, config
from src.kernel.processes import prepare_child
from src.kernel.rows import Row, write_metrics, write_rows
from src.modeling.policy import Precision

DONE = "done"
SCORES = pa.schema(
    {
        "item_id": pa.string(),  # task/number of the item in it
        "score": pa.float64(),  # the column's first metric, in [0, 1]; what guessing gets is not subtracted
        "column": pa.string(),  # key of the column
        "task": pa.string(),
    }
)
_VERSIONS = """
import json, sys
from importlib import metadata
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


@cache
def installed(python: Path, packages: tuple[str, ...]) -> dict[str, str | None]:
    """Asks an interpreter for versions, None for what is not there. Raises UserError where it does not say."""
    try:
        answer = subprocess.run([python, "-c", _VERSIONS, *packages], capture_output=True, check=True, text=True)
        return json.loads(answer.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise UserError(f"{python}: no Python that says which packages it has ({shortened(str(error))})") from None


def check_environment(key: str, python: Path, columns: tuple[Column, ...]) -> str:
    """Returns the version of lm-eval there. Raises UserError, naming the config's `key`, where a column cannot run."""
    needs = {"lm-eval": ""} | {name: begins for column in columns for name, begins in column.needs.items()}
    versions = installed(python, tuple(needs))
    for name, begins in needs.items():
        version = versions[name]
        if version is None or not version.startswith(begins):
            raise UserError(
                f"{key}: needs {name} {begins}".rstrip() + f", and {python} has {version or 'none'}; `make install` "
                "brings lm-eval, but Hydra keeps antlr4 at another version: make an environment apart, "
                "pip install 'lm-eval[hf,math,ifeval]==0.4.13' there, and give its bin/python here"
            )
    return str(versions["lm-eval"])


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
                folder.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(folder / "found", ignore_errors=True)
                settings = folder / "config.yaml"
                settings.write_text(json.dumps(self.settings(column, policy.resolve(), folder), indent=1))
                run(self.command(settings), folder, column.title)
                collect(folder)
                (folder / DONE).touch()
            results, samples = collect(folder)
            rows += [row for file in samples for row in items_of(column, file)]
            files.append(shutil.copyfile(results, out / f"{column.key}.json"))
        numbers = score_files(files, self.columns, self.chat_template, self.confidence, limited=self.first is not None)
        write_rows(out, rows, SCORES)
        write_metrics(out, numbers | {"items": len(rows)})

    def settings(self, column: Column, policy: Path, folder: Path) -> dict[str, Any]:
        """Builds the file of `lm_eval run --config`."""
        settings = {
            "model": "hf",
            "model_args": {"pretrained": str(policy), "dtype": self.dtype},
            "tasks": [column.task],
            "num_fewshot": column.shots,
            "seed": [0, 1234, 1234, 1234],  # lm-eval's own: Python, numpy, torch, which examples are shown
            "use_cache": str(folder / "requests"),
            "output_path": str(folder / "found"),
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
        """Builds the command: on one device, or through `accelerate launch` on each of several."""
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


def run(command: list[str], folder: Path, title: str) -> None:
    """Runs lm-eval; what it says goes to `folder/log`. Raises UserError when it fails."""
    log, environment = folder / "log", os.environ | {"PYTHONUNBUFFERED": "1"}
    if copy_punkt(folder / "nltk"):  # IFEval would fetch it
        environment["NLTK_DATA"] = str(folder / "nltk")
    print(f"lm-eval: {title}; it writes to {log}", flush=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=prepare_child,
        )
        try:
            process.wait()
        finally:
            with suppress(ProcessLookupError):  # with all that it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise UserError(
            f"{title}: lm-eval ended with exit code {process.returncode}: {lines[-1] if lines else 'it said nothing'} "
            f"({log}); what was answered is kept, the same command goes on"
        )


def collect(folder: Path) -> tuple[Path, list[Path]]:
    """Finds the result file and the files of samples that lm-eval left in `folder/found`."""
    results = sorted((folder / "found").rglob("results_*.json"))
    samples = sorted((folder / "found").rglob("samples_*.jsonl"))
    if len(results) != 1 or not samples:  # it ends in order where it could not write them
        raise UserError(f"{folder}: lm-eval left no results; {folder / 'log'} says why")
    return results[0], samples


def items_of(column: Column, file: Path) -> Iterator[Row]:
    """Reads SCORES rows from a file of samples: a line an item and filter."""
    task = file.stem.removeprefix("samples_").rpartition("_")[0]
    metric, _, wanted = column.metrics[0].partition(",")
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                sample = json.loads(line)
                item, kind = int(sample["doc_id"]), sample["filter"]
                score = float(sample[metric]) if kind == wanted else 0.0
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
                raise UserError(f"{file}:{number}: no sample of lm-eval with {metric} ({error!r})") from None
            if kind == wanted:
                yield {"item_id": f"{task}/{item}", "score": score, "column": column.key, "task": task}
