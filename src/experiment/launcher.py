"""How the runs of a command are started: here, in the SLURM allocation around it, or as SLURM jobs (src/slurm)."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from omegaconf import DictConfig, OmegaConf

from src.kernel.artifact import Node
from src.kernel.config import UserError, config
from src.kernel.record import damage_of
from src.kernel.rows import read_metrics
from src.kernel.store import Store

if TYPE_CHECKING:
    from src.experiment.run import Run


@dataclass(frozen=True)
class Point:
    """A run, and what makes it: of a sweep there are several."""

    run: Run
    overrides: list[str]
    compose: Callable[[], DictConfig]
    """The config; composing it takes a while."""
    command: tuple[str, ...] = ()
    """All words of the command but the verb; of a grid, those of all its points."""
    search: str | None = None
    """Names the sweep whose points come one by one, as those of an adaptive sweeper do."""

    @cached_property
    def cfg(self) -> DictConfig:
        return self.compose()

    @cached_property
    def settings(self) -> str:
        """The composed config as YAML."""
        return OmegaConf.to_yaml(self.cfg, resolve=True)

    @cached_property
    def container(self) -> dict[str, Any]:
        """The same as a dict, for W&B."""
        found: Any = OmegaConf.to_container(self.cfg, resolve=True)
        return found

    @cached_property
    def nodes(self) -> list[Node]:
        """Of the run, inputs before what reads them."""
        return self.run.nodes()

    @cached_property
    def folder(self) -> Path:
        from src.experiment.run_folder import run_name

        return self.run.runs / run_name(self.run)


@runtime_checkable
class Launcher(Protocol):
    """Starts the runs of a command; both return the exit code."""

    def launch(self, points: Sequence[Point]) -> int: ...

    def plan(self, points: Sequence[Point]) -> int:
        """Show what `launch` would do; makes nothing."""
        ...

    def await_win(self, point: Point) -> float:
        """The win rate of the last iteration over the base, once it is there: what adaptive sweepers maximise.

        Raises UserError when it will not be.
        """
        ...


@runtime_checkable
class Queue(Protocol):
    """A launcher whose work goes on when the command has returned; all return the exit code."""

    def status(self, points: Sequence[Point]) -> int: ...

    def cancel(self, points: Sequence[Point]) -> int: ...

    def retry(self, points: Sequence[Point]) -> int: ...


@config
class Local:
    """In this process, one point after the other."""

    def launch(self, points: Sequence[Point]) -> int:
        from src.experiment.plan import print_forecast
        from src.experiment.sweep_note import note_sweep, sweep_of
        from src.launch.runner import check, execute

        for point in points:
            check(point)
        note_sweep(points)
        for point in points:
            if not point.run.only:
                print_forecast(point.run)
            execute(point)
        if not points[0].run.only and (name := sweep_of(points)):
            print(f"the points side by side: python -m src.main compare {shlex.quote(f'runs={name}')}")
        return 0

    def plan(self, points: Sequence[Point]) -> int:
        from src.experiment.plan import print_plan, print_sweep

        return print_plan(points[0].run) if len(points) == 1 else print_sweep(points)

    def await_win(self, point: Point) -> float:
        return win_of(point)


def win_of(point: Point) -> float:
    """From the evaluation of the last iteration. Raises UserError where it is not there."""
    name, store = f"it{point.run.iter}/evaluation", Store(point.run.store)
    if not point.run.iter:
        raise UserError("iter: 0 trains nothing, so there is no win rate that a sweeper could be told")
    evaluation = next(node for node in point.nodes if node.name == name)
    if not store.has(evaluation):
        raise UserError(f"{name}: not made, so there is no win rate that a sweeper could be told")
    if lines := damage_of(store.path(evaluation)):
        raise UserError(f"{name}: {lines[0]}; a run makes it again")
    return read_metrics(store.path(evaluation))["win_over_base"]
