"""Metrics: `metrics.jsonl` of a run is rebuilt from its artifacts; W&B is a mirror of it.

A row of the file is a step of the W&B run, so a restarted run goes on where it was and doubles nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from src.artifact import Node, Store, write_atomic
from src.config import Free, Stopped, config
from src.records import Row

METRICS = "metrics.jsonl"
IDENTITY = ("artifact", "train/step")
"""Columns by which a row is the same one, made again: a GPU, or another speed, moves the last digits of the rest."""


class Mirror(Protocol):
    """Where the rows of `metrics.jsonl` are shown as they come."""

    def update(self) -> None:
        """Show the rows that were not shown yet."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Tracking(Protocol):
    """What mirrors the metrics of a run."""

    def open(self, folder: Path, settings: dict[str, Any]) -> Mirror: ...


@config
class Off:
    """The file only."""

    def open(self, folder: Path, settings: dict[str, Any]) -> Mirror:
        return self

    def update(self) -> None: ...

    def close(self) -> None: ...


@config
class WandB:
    """A Weights & Biases run whose id follows the run folder."""

    project: Free[str]
    entity: Free[str | None]
    mode: Free[Literal["auto", "online", "offline"]]
    """auto: what WANDB_MODE says, else online with an API key, else offline (`wandb sync` uploads later)."""

    def open(self, folder: Path, settings: dict[str, Any]) -> Mirror:
        return _Guarded(_WandBMirror(self, folder, settings))


class _Guarded:
    """A mirror whose failure is said once and never stops a run: the file has every row."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror, self.failed = mirror, False

    def update(self) -> None:
        self._try(self.mirror.update)

    def close(self) -> None:
        self._try(self.mirror.close)

    def _try(self, act: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            act()
        except Exception as error:
            self.failed = True
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            print(f"tracking: W&B failed ({reason}); the next start shows the rows it lacks", file=sys.stderr)


class _WandBMirror:
    """Opens the W&B run at the first new row; remembers in `wandb.json` which rows were shown, and in which run.

    Where those rows are no longer the head of the file, another experiment has the folder: it gets a run of its own.
    """

    def __init__(self, tracking: WandB, folder: Path, settings: dict[str, Any]) -> None:
        self.tracking, self.folder, self.settings = tracking, folder, settings
        self.cursor = folder / "wandb.json"
        known = json.loads(self.cursor.read_text()) if self.cursor.exists() else {}
        self.number: int = known.get("number", 0)
        self.shown: list[str] = known.get("rows_shown", []) if known.get("id") == self._id() else []
        self.run: Any = None

    def update(self) -> None:
        rows = [json.loads(line) for line in (self.folder / METRICS).read_text().splitlines()]
        hashes = [_row_hash(row) for row in rows]
        if any(new != old for new, old in zip(hashes, self.shown, strict=False)):
            self.close()
            self.number, self.shown, self.run = self.number + 1, [], None
        if len(self.shown) >= len(rows):
            return
        self.run = self.run or self._init()
        for step in range(len(self.shown), len(rows)):
            self.run.log({key: _shown(key, value) for key, value in rows[step].items()}, step=step)
        self.shown = hashes
        state = {"id": self._id(), "number": self.number, "rows_shown": self.shown}
        write_atomic(self.cursor, json.dumps(state).encode())

    def _id(self) -> str:
        """In a trial of a sweep W&B takes the id of its agent, whatever it is given."""
        trial = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        return trial or run_id(self.folder, self.number)

    def close(self) -> None:
        """In the `finally` of a run: what ends it decides whether W&B takes it for finished, failed or interrupted."""
        if self.run is None:
            return
        error = sys.exc_info()[1]
        code = 0 if error is None else getattr(error, "exit_code", 1)
        if isinstance(error, Stopped) and code == 128 + signal.SIGUSR1:
            self.run.mark_preempting()  # W&B gives the trial to the next agent; SIGTERM may be W&B's own stop
        self.run.finish(exit_code=code)

    def _init(self) -> Any:
        import wandb

        return wandb.init(
            project=self.tracking.project,
            entity=self.tracking.entity,
            mode=_mode() if self.tracking.mode == "auto" else self.tracking.mode,
            id=self._id(),
            name=self.folder.name,
            resume="allow",
            dir=self.folder,
            config=self.settings,
            settings=wandb.Settings(silent=True, console="off"),
        )


def _shown(key: str, value: Any) -> Any:
    """Counts over [0, 1] become W&B's histogram."""
    if not key.endswith("_histogram"):
        return value
    import numpy as np
    import wandb

    return wandb.Histogram(np_histogram=(np.array(value), np.linspace(0, 1, len(value) + 1)))


def _row_hash(row: Row) -> str:
    return hashlib.sha256(json.dumps([row.get(key) for key in IDENTITY]).encode()).hexdigest()[:8]


def _mode() -> Any:
    """WANDB_MODE; else online with a key in WANDB_API_KEY or, from `wandb login`, in the netrc file; else offline."""
    from requests.utils import get_netrc_auth

    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    key = os.environ.get("WANDB_API_KEY") or get_netrc_auth(server)
    trial = os.environ.get("WANDB_SWEEP_ID")  # its agent has logged in, with a key or otherwise
    return os.environ.get("WANDB_MODE") or ("online" if key or trial else "offline")


def run_id(folder: Path, number: int = 0) -> str:
    """16 hex digits that depend on where the run lies, and on how many other experiments lay there before."""
    return hashlib.sha256(f"{folder.resolve()}\n{number}".encode()).hexdigest()[:16]


def write_metrics(nodes: list[Node], store: Store, folder: Path) -> None:
    """Rebuild `metrics.jsonl` from the artifacts up to the first missing one, and the steps that one has made so far.

    After a kill, steps beyond the last checkpoint are gone until they are made again; else rows are only added.
    """
    rows = []
    for node in nodes:
        finished = store.has(node)
        place = store.path(node) if finished else store.work(node)
        rows += metric_rows(node, place) if place else []
        if not finished:
            break
    write_atomic(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows).encode())


def metric_rows(node: Node, folder: Path) -> list[Row]:
    """The numbers in the folder of an artifact: a row a training step, or one row.

    Keys are `<stage>/<metric>`, beside `iteration` and `artifact` (`<kind>/<key>`, its place in the store).
    """
    iteration, _, stage = node.name.partition("/")
    if not iteration.startswith("it"):
        return []
    head = {"iteration": int(iteration.removeprefix("it")), "artifact": f"{node.stage.kind}/{node.key}"}
    steps, single = folder / METRICS, folder / "metrics.json"
    if steps.exists():
        entries = [json.loads(line) for line in steps.read_text().splitlines()]
        return [head | {f"train/{key}": value for key, value in entry.items()} for entry in entries]
    if single.exists():
        return [head | {f"{stage}/{key}": value for key, value in json.loads(single.read_text()).items()}]
    return []
