"""Scores of an Open LLM Leaderboard: lm-eval on a policy, a column at a time.

In: policy. Out: a row an item, `metrics.json` (percentages), and what lm-eval wrote of each column, `<key>.json`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import PositiveInt

from src.evaluation.open_llm.columns import Column
from src.evaluation.open_llm.results import score_files
from src.evaluation.open_llm.running import collect, launch_command, run, settings
from src.kernel.artifact import WORK, Takes
from src.kernel.config import Confidence, Device, Free, UserError, YamlPath, config
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


@config
class LmEval:
    kind: ClassVar[str] = "lm_eval_scores"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    columns: tuple[Column, ...]
    chat_template: bool
    """Questions and solved examples are turns of a chat."""
    dtype: Precision
    """Of weights and products."""
    first: PositiveInt | None
    """Items of each task; null: all."""
    confidence: Confidence
    """Of the intervals."""
    lm_eval: str
    """Version."""
    own_tasks: str
    """What the files of `include_path` say; empty: there are none."""
    include_path: Free[YamlPath | None]
    python: Free[YamlPath | None]
    """Of the environment that has lm-eval; null: this one's."""
    device: Free[Device]
    devices: Free[PositiveInt]
    """Of this machine; several share the items of a task."""
    batch_size: Free[PositiveInt | Literal["auto"]]

    def takes(self) -> Takes:
        return Takes("hardware.devices.device", self.devices, cuda=self.device == "cuda")

    def __call__(self, *inputs: Path, out: Path) -> None:
        (policy,) = inputs
        rows, files = [], []
        for column in self.columns:
            folder = (out / WORK / column.key).resolve()
            results, samples = self._made(column, policy.resolve(), folder)
            rows += [row for file in samples for row in _rows(column, file)]
            files.append(shutil.copyfile(results, out / f"{column.key}.json"))
        numbers = score_files(files, self.columns, self.chat_template, self.confidence, limited=self.first is not None)
        write_rows(out, rows, SCORES)
        write_metrics(out, numbers | {"items": len(rows)})

    def _made(self, column: Column, policy: Path, folder: Path) -> tuple[Path, list[Path]]:
        """What lm-eval left, now or in an attempt before this one."""
        if not (folder / DONE).exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder / "found", ignore_errors=True)
            told = settings(column, policy, folder, self.dtype, self.chat_template, self._rest())
            file = folder / "config.yaml"
            file.write_text(json.dumps(told, indent=1))  # JSON is YAML
            python = self.python or Path(sys.executable)
            print(f"lm-eval: {column.title}", flush=True)
            run(launch_command(python, self.device, self._visible(), file), folder, column.title)
            collect(folder)
            (folder / DONE).touch()
        return collect(folder)

    def _visible(self) -> int:
        """Devices that this process may use: a job may have fewer than its machine."""
        if self.device == "cpu":
            return 1
        import torch

        return max(1, min(self.devices, torch.cuda.device_count()))

    def _rest(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "batch_size": self.batch_size,
            "limit": self.first,
            "include_path": str(self.include_path.resolve()) if self.include_path else None,
        }


def _rows(column: Column, file: Path) -> Iterator[Row]:
    """SCORES rows of a file of samples: a line an item and filter."""
    task = file.stem.removeprefix("samples_").rpartition("_")[0]
    metric, _, wanted = column.metrics[0].partition(",")
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                sample = json.loads(line)
                item, said = str(int(sample["doc_id"])), sample["filter"]
                score = float(sample[metric]) if said == wanted and metric in sample else None
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
                raise UserError(f"{file}:{number}: no sample of lm-eval ({error!r})") from None
            if said != wanted:
                continue
            if score is None:
                raise UserError(f"{file}: item {item} has no {metric}; it has {', '.join(map(str, sample))}")
            yield {"item_id": f"{task}/{item}", "score": score, "column": column.key, "task": task}
