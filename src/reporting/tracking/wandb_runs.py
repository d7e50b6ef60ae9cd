"""The W&B mirror: a W&B run for each family of stages of a run folder, or one for a trial of a W&B sweep."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveFloat

from src.experiment.point import Mirror
from src.kernel.artifact import Node
from src.kernel.config import Free, Stopped, config
from src.kernel.store import Store
from src.reporting.tracking.families import FAMILIES, TRIAL, experiment_of, family_of, nodes_of
from src.reporting.tracking.mirror import Guard, Off, reason_of
from src.reporting.tracking.one_run import OneRun
from src.reporting.tracking.opening import Opener, mode_of
from src.reporting.tracking.samples import Samples
from src.reporting.tracking.state import Place

if TYPE_CHECKING:
    from src.experiment.point import Point


@config
class WandB:
    """Weights & Biases runs whose ids follow the run folder."""

    project: Free[str]
    entity: Free[str | None]
    mode: Free[Literal["auto", "online", "offline"]]
    """auto: what WANDB_MODE says, else online with an API key, else offline (`make sync` uploads later)."""
    group: Free[str | None]
    """Of the W&B runs; null: the sweep, else the experiment, else the run folder."""
    patience_seconds: Free[PositiveFloat]
    """For W&B to answer when a run is opened or finished; then it goes on offline."""
    spool_gb: Free[PositiveFloat]
    """What may wait below `runs` to be uploaded; beyond it no W&B run is opened."""

    def open(self, point: Point) -> Mirror:
        try:
            mode = mode_of(self.mode)
        except Exception as error:  # whatever W&B's library says to its settings is no end of a run
            print(f"tracking: {reason_of(error)}; W&B is shown nothing until that is mended", file=sys.stderr)
            return Off()
        return Off() if mode == "disabled" else Families(self, point, mode)


class Families:
    """The W&B runs of a run folder. One is open while a stage works: that stage's. Each fails for itself."""

    def __init__(self, tracking: WandB, point: Point, mode: str) -> None:
        trial = "WANDB_SWEEP_ID" in os.environ and "WANDB_RUN_ID" in os.environ
        environment = os.environ if trial else {}
        project = environment.get("WANDB_PROJECT") or tracking.project
        entity = environment.get("WANDB_ENTITY") or tracking.entity
        store = Store(point.run.store)
        samples = Samples(point.nodes, store, point.run.estimator)
        opener = Opener(tracking, point, mode, self._pause)
        place = project, entity, experiment_of(point.nodes)
        self.runs = {
            family: OneRun(Place(point.folder, family, *place), nodes_of(family, point.nodes), store, samples, opener)
            for family in ((TRIAL,) if trial else (*FAMILIES, *point.run.benchmark))
        }
        told: set[str] = set()
        self.guards = {family: Guard(told) for family in self.runs}

    def begin(self, node: Node) -> None:
        own = TRIAL if TRIAL in self.runs else family_of(node.name)
        for family, run in self.runs.items():
            if family != own:
                self.guards[family](run.finish, always=True)
        if own in self.runs:
            self.guards[own](self.runs[own].begin)

    def update(self) -> None:
        for family, run in self.runs.items():
            self.guards[family](run.update)

    def report(self) -> None:
        family = TRIAL if TRIAL in self.runs else "evaluate"
        self.guards[family](self.runs[family].report)

    def close(self) -> None:
        """What ends the run decides whether W&B takes it for finished, failed or interrupted."""
        error = sys.exc_info()[1]
        code = 0 if error is None else getattr(error, "exit_code", 1)
        preempted = isinstance(error, Stopped) and code == 128 + signal.SIGUSR1
        for family, run in self.runs.items():
            if preempted:
                self.guards[family](run.preempt)
            self.guards[family](lambda run=run: run.finish(code), always=True)

    def _pause(self) -> None:
        for family, run in self.runs.items():
            self.guards[family](run.pause)
