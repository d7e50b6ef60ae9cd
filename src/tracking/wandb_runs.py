"""The W&B mirror: a W&B run for each family of stages of a run folder, or one for a trial of a W&B sweep."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveFloat

from src.artifact import Node, Store
from src.config import Free, Stopped, config
from src.tracking.families import FAMILIES, TRIAL, experiment_of, family_of, nodes_of
from src.tracking.mirror import Guarded, Mirror, Off
from src.tracking.one_run import OneRun
from src.tracking.opening import Opener, mode_of
from src.tracking.samples import Samples
from src.tracking.state import Place

if TYPE_CHECKING:
    from src.launcher import Point


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
        mode = mode_of(self.mode)
        return Off() if mode == "disabled" else Guarded(Families(self, point, mode))


class Families:
    """The W&B runs of a run folder. One is open while a stage works: that stage's."""

    def __init__(self, tracking: WandB, point: Point, mode: str) -> None:
        trial = "WANDB_SWEEP_ID" in os.environ and "WANDB_RUN_ID" in os.environ
        environment = os.environ if trial else {}
        project = environment.get("WANDB_PROJECT") or tracking.project
        entity = environment.get("WANDB_ENTITY") or tracking.entity
        store = Store(point.run.store)
        samples = Samples(point.nodes, store, point.run.estimator)
        opener = Opener(tracking, point, mode, self._pause)
        told = project, entity, experiment_of(point.nodes)
        self.runs = {
            family: OneRun(Place(point.folder, family, *told), nodes_of(family, point.nodes), store, samples, opener)
            for family in ((TRIAL,) if trial else FAMILIES)
        }

    def begin(self, node: Node) -> None:
        own = self.runs.get(TRIAL) or self.runs.get(family_of(node.name) or "")
        for run in self.runs.values():
            if run is not own:
                run.finish()
        if own is not None:
            own.begin()

    def update(self) -> None:
        for run in self.runs.values():
            run.update()

    def report(self) -> None:
        (self.runs.get(TRIAL) or self.runs["evaluate"]).report()

    def close(self) -> None:
        """What ends the run decides whether W&B takes it for finished, failed or interrupted."""
        error = sys.exc_info()[1]
        code = 0 if error is None else getattr(error, "exit_code", 1)
        for each in self.runs.values():
            if each.run is not None and isinstance(error, Stopped) and code == 128 + signal.SIGUSR1:
                each.run.mark_preempting()  # W&B gives a trial to the next agent; SIGTERM may be W&B's own stop
            each.finish(code)

    def _pause(self) -> None:
        for run in self.runs.values():
            run.pause()
