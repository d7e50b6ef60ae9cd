"""benchmark=open_llm_v1 and open_llm_v2: the tasks of the Open LLM Leaderboards, run by lm-eval."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from src.evaluation.benchmark import SCORES, Measure, Numbers, Planner, Policies, chosen
from src.evaluation.open_llm.columns import AVERAGE, Column, model_of, score_files
from src.evaluation.open_llm.lm_eval import LmEval, check_environment
from src.kernel.artifact import Node
from src.kernel.config import UserError, YamlPath, config
from src.modeling.policy import Precision

PUBLISHED = {"Open LLM Leaderboard v1": "open_llm_v1", "Open LLM Leaderboard v2": "open_llm_v2"}
"""Title -> file of conf/benchmark."""


@config
class OpenLLM:
    no_matter: ClassVar[tuple[str, ...]] = ("dtype", "of", "batch_size", "python", "needs")
    scored_by: ClassVar[tuple[str, ...]] = ("title", "columns", "chat_template")

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

    def __post_init__(self) -> None:
        keys = [column.key for column in self.columns]
        if doubled := next((key for key in keys if keys.count(key) > 1), None):
            raise ValueError(f"columns: two have the key {doubled!r}")

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (Measure(AVERAGE, AVERAGE), *(Measure(column.key, column.title) for column in self.columns))

    @property
    def published(self) -> str | None:
        return PUBLISHED.get(self.title)

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
        """Computes the columns and their average of the one model of these result files of lm-eval."""
        numbers = score_files(paths, self.columns, self.chat_template, confidence)
        models = list(dict.fromkeys(model_of(path) for path in paths))
        if len(models) > 1:
            raise UserError(f"benchmark.{name}: the files are of {models[0]} and of {models[1]}; score one at a time")
        return {models[0]: dict(numbers)}


def _content(key: str, folder: Path | None) -> str:
    """Hashes the files of tasks and what lies beside them."""
    if folder is None:
        return ""
    if not folder.is_dir():
        raise UserError(f"{key}: no folder {folder}")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    parts = [(str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
