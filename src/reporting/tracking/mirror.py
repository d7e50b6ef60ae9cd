"""What mirrors the metrics of a run, and how it fails: said once, and never the run's end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pydantic import ValidationError

from src.kernel.artifact import Node
from src.kernel.config import config, explain

if TYPE_CHECKING:
    from src.experiment.point import Point


class Mirror(Protocol):
    """Where the artifacts and metrics of a run are shown as they come."""

    def begin(self, node: Node) -> None:
        """Its stage starts now."""
        ...

    def update(self) -> None:
        """Show what was not shown yet."""
        ...

    def report(self) -> None:
        """The report and its plots are written."""
        ...

    def close(self) -> None:
        """In the `finally` of a run: what ends it decides how the mirror ends."""
        ...


@runtime_checkable
class Tracking(Protocol):
    """What mirrors the metrics of a run."""

    def open(self, point: Point) -> Mirror: ...


@config
class Off:
    """`metrics.jsonl` only."""

    def open(self, point: Point) -> Mirror:
        return self

    def begin(self, node: Node) -> None: ...

    def update(self) -> None: ...

    def report(self) -> None: ...

    def close(self) -> None: ...


class Refused(Exception):
    """The mirror shows nothing for now, and says why."""


class Guard:
    """What fails under it is said once, is not tried again, and never stops a run: the artifacts have every row."""

    def __init__(self, told: set[str]) -> None:
        """`told` are lines that were said, here or by others."""
        self.told, self.failed = told, False

    def __call__(self, act: Callable[[], None], always: bool = False) -> None:
        if self.failed and not always:
            return
        try:
            act()
        except Exception as error:
            line = f"tracking: {_explained(error)}"
            if not self.failed and line not in self.told:
                print(line, file=sys.stderr)
            self.told.add(line)
            self.failed = True


def _explained(error: Exception) -> str:
    reason = reason_of(error)
    return reason if isinstance(error, Refused) else f"W&B failed ({reason}); the next start shows the rows it lacks"


def reason_of(error: Exception) -> str:
    """One line; of a setting that W&B's library refuses, its name and value."""
    if isinstance(error, ValidationError):
        return explain(error, "")
    return (str(error).strip() or repr(error)).splitlines()[0]
