"""A point of a command: a run, the words that make it, who carries it out, and what mirrors it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from omegaconf import DictConfig, OmegaConf

from src.experiment.graph import nodes_of
from src.experiment.run import Run
from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.kernel.record import damage_of
from src.kernel.rows import read_metrics
from src.kernel.store import Store


@dataclass(frozen=True)
class Point:
    """One run of a command; a sweep has several."""

    run: Run
    launcher: Launcher
    tracking: Tracking
    overrides: list[str]
    compose: Callable[[], DictConfig]
    """Returns the composed config; takes a while."""
    command: tuple[str, ...] = ()
    """All words of the command but the verb; those of a grid are for all its points."""
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
        """The composed config as a dict, for W&B."""
        settings: Any = OmegaConf.to_container(self.cfg, resolve=True)
        return settings

    @cached_property
    def nodes(self) -> list[Node]:
        """The artifacts of the run, inputs before what reads them."""
        return nodes_of(self.run)

    @cached_property
    def folder(self) -> Path:
        return self.run.folder

    def win(self) -> float:
        """Return the last iteration's win rate over the base. Raises UserError where it is not there."""
        name, store = f"it{self.run.iter}/evaluation", Store(self.run.store)
        if not self.run.iter:
            raise UserError("iter: 0 trains nothing, so there is no win rate that a sweeper could be told")
        evaluation = next(node for node in self.nodes if node.name == name)
        if not store.has(evaluation):
            raise UserError(f"{name}: not made, so there is no win rate that a sweeper could be told")
        if damage := damage_of(store.path(evaluation)):
            raise UserError(f"{name}: {damage[0]}; a run makes it again")
        return read_metrics(store.path(evaluation))["win_over_base"]


@runtime_checkable
class Launcher(Protocol):
    """Starts the runs of a command; `launch` and `plan` return the exit code."""

    def launch(self, points: Sequence[Point]) -> int: ...

    def plan(self, points: Sequence[Point]) -> int:
        """Show what `launch` would do; makes nothing."""
        ...

    def await_win(self, point: Point) -> float:
        """Return the win rate of the last iteration over the base, once it is there: what adaptive sweepers maximise.

        Raises UserError when it will not be.
        """
        ...


@runtime_checkable
class Queue(Protocol):
    """A launcher whose work goes on when the command has returned; all methods return the exit code."""

    def status(self, points: Sequence[Point]) -> int: ...

    def cancel(self, points: Sequence[Point]) -> int: ...

    def retry(self, points: Sequence[Point]) -> int: ...


class Mirror(Protocol):
    """Shows the artifacts and metrics of a run elsewhere as they come."""

    def begin(self, node: Node) -> None:
        """Note that the node's stage starts now."""
        ...

    def update(self) -> None:
        """Show what was not shown yet."""
        ...

    def report(self) -> None:
        """Show the report and its plots, which are written."""
        ...

    def close(self) -> None:
        """End, in the `finally` of a run: what ends the run decides how the mirror ends."""
        ...


@runtime_checkable
class Tracking(Protocol):
    """Opens the mirror of a run."""

    def open(self, point: Point) -> Mirror: ...
