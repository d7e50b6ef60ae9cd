"""A point of a command: a run, the words that make it, who carries it out, and what mirrors it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from omegaconf import DictConfig, OmegaConf

from src.experiment.graph import nodes_of
from src.experiment.run import Run
from src.kernel.artifact import Divisible, Node, with_ancestors
from src.kernel.config import UserError, meant


@dataclass(frozen=True)
class Point:
    """One run of a command; a sweep has several."""

    run: Run
    launcher: Launcher
    tracking: Tracking
    cfg: DictConfig
    """The composed config."""
    overrides: list[str]
    command: tuple[str, ...] = ()
    """All words of the command but the verb; a grid's are the same for all its points."""

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
        """The run folder."""
        return self.run.folder

    def wanted(self, alone: bool = False) -> list[Node]:
        """Return what `only` names and, unless `alone`, what that needs; without `only`, all nodes.

        Raises UserError where there is none of that name, or `part` has no meaning for it.
        """
        by_name = {node.name: node for node in self.nodes}
        for name in self.run.wanted:
            if name not in by_name:
                hint = f"{meant(name, by_name)}there are {', '.join(by_name)}"
                raise UserError(f"only: no artifact is called {name}; {hint}")
            if self.run.part and not isinstance(by_name[name].stage, Divisible):
                divisible = ", ".join(node.name for node in self.nodes if isinstance(node.stage, Divisible))
                raise UserError(f"part: {name} is made as a whole; made in parts are {divisible}")
        chosen = [by_name[name] for name in self.run.wanted] or self.nodes
        keys = {node.key for node in (chosen if alone else with_ancestors(*chosen))}
        return [node for node in self.nodes if node.key in keys]


@runtime_checkable
class Launcher(Protocol):
    """A launcher: it starts the runs of a command and returns the exit code."""

    def launch(self, points: Sequence[Point]) -> int: ...


@runtime_checkable
class Queue(Launcher, Protocol):
    """A launcher whose work goes on when the command has returned; all methods return the exit code."""

    def plan(self, points: Sequence[Point]) -> int:
        """Show what `launch` would do; make nothing."""
        ...

    def status(self, points: Sequence[Point]) -> int: ...

    def cancel(self, points: Sequence[Point]) -> int: ...

    def retry(self, points: Sequence[Point]) -> int: ...


class Mirror(Protocol):
    """Shows the artifacts and metrics of a run elsewhere as they come."""

    def begin(self, node: Node) -> None:
        """Note that the node's stage starts now."""

    def update(self) -> None:
        """Show what was not shown yet."""

    def report(self) -> None:
        """Show the report and its plots, which are written."""

    def close(self) -> None:
        """End the mirror, in the `finally` of a run: an exception under way says that the run failed."""


@runtime_checkable
class Tracking(Protocol):
    """Opens the mirror of a run."""

    def open(self, point: Point) -> Mirror: ...
