"""Metrics: `metrics.jsonl` of a run is rebuilt from its artifacts; W&B is a mirror of it.

A row of the file is a step of the W&B run, so a restarted run goes on where it was and doubles nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from src.artifact import Node, Store, write_atomic
from src.config import Free, config
from src.records import Row

METRICS = "metrics.jsonl"


@runtime_checkable
class Tracking(Protocol):
    """Where metrics are shown beside the file."""

    def mirror(self, folder: Path, settings: dict[str, Any]) -> None:
        """Show the rows of `folder/metrics.jsonl` that were not shown yet."""
        ...


@config
class Off:
    """The file only."""

    def mirror(self, folder: Path, settings: dict[str, Any]) -> None: ...


@config
class WandB:
    """A Weights & Biases run whose id follows the run folder."""

    project: Free[str]
    entity: Free[str | None]
    mode: Free[Literal["auto", "online", "offline"]]
    """auto: online with an API key, else offline (`wandb sync` uploads later)."""

    def mirror(self, folder: Path, settings: dict[str, Any]) -> None:
        rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
        cursor = folder / "wandb.json"
        shown = json.loads(cursor.read_text())["rows_shown"] if cursor.exists() else 0
        if shown >= len(rows):
            return
        run = self._open(folder, settings)
        for step in range(shown, len(rows)):
            run.log(rows[step], step=step)
        run.finish()
        write_atomic(cursor, json.dumps({"id": run_id(folder), "rows_shown": len(rows)}).encode())

    def _open(self, folder: Path, settings: dict[str, Any]) -> Any:
        import wandb

        mode = ("online" if _has_key() else "offline") if self.mode == "auto" else self.mode
        return wandb.init(
            project=self.project,
            entity=self.entity,
            mode=mode,
            id=run_id(folder),
            name=folder.name,
            resume="allow",
            dir=folder,
            config=settings,
            settings=wandb.Settings(silent=True, console="off"),
        )


def _has_key() -> bool:
    import wandb

    return bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)


def run_id(folder: Path) -> str:
    """16 hex digits that depend on where the run lies."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def write_metrics(nodes: list[Node], store: Store, folder: Path) -> None:
    """Rebuild `metrics.jsonl` from the artifacts that exist, in the order of the plan."""
    rows = [row for node in nodes if store.has(node) for row in metric_rows(node.name, store.path(node))]
    write_atomic(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows).encode())


def metric_rows(name: str, artifact: Path) -> list[Row]:
    """The numbers of one artifact: a row a training step, or one row. Keys are `<stage>/<metric>`."""
    iteration, _, stage = name.partition("/")
    head = {"iteration": int(iteration.removeprefix("it"))} if iteration.startswith("it") else {}
    if not head:
        return []
    steps, single = artifact / METRICS, artifact / "metrics.json"
    if steps.exists():
        entries = [json.loads(line) for line in steps.read_text().splitlines()]
        return [head | {f"train/{key}": value for key, value in entry.items()} for entry in entries]
    if single.exists():
        return [head | {f"{stage}/{key}": value for key, value in json.loads(single.read_text()).items()}]
    return []
