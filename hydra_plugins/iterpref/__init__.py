"""Hydra's side of a sweep: src/launch/compose.py composes all points and makes one graph of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn, setup_globals
from hydra.plugins.launcher import Launcher


class GraphLauncher(Launcher):
    """Takes the points a sweeper proposes, all at a time."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from src.launch.compose import check_sweeper

        check_sweeper(config)
        self.loader, self.config = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from src.launch.compose import launched

        setup_globals()
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)  # where a sweeper leaves its results
        return launched(self.loader, self.config, [list(overrides) for overrides in job_overrides])


class GridSweeper(BasicSweeper):
    """Hydra's own; but the launcher composes every point before the first one starts, and does it once."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None: ...
