"""Waiting for what other jobs make."""

from __future__ import annotations

import time

from src.kernel.artifact import Divisible, Node
from src.kernel.config import UserError
from src.kernel.store import Store

SEEN_LATE_S = 90.0
"""Seconds that what another node has written may stay unseen."""
NAMED = 3
"""Of what is missing."""


def await_inputs(inputs: list[Node], store: Store) -> None:
    """Two shares that ended at once may each have missed the other."""
    for node in _not_shown(inputs, store):
        if not isinstance(node.stage, Divisible) or not store.begun(node):
            raise UserError(f"only: {node.name} is missing; the job that makes it has not ended well")
        store.make(node)


def await_all(nodes: list[Node], store: Store) -> None:
    """Raises UserError where something is missing: a job for a report has not the machine to make it."""
    if missing := _not_shown(nodes, store):
        names = ", ".join(node.name for node in missing[:NAMED]) + ", …" * (len(missing) > NAMED)
        raise UserError(
            f"launcher.alone: {len(missing)} of {len(nodes)} artifacts are missing ({names}); the jobs that make them "
            "have not ended well; `retry` submits them again, launcher.alone=false makes them here"
        )


def _not_shown(nodes: list[Node], store: Store) -> list[Node]:
    """Those that are missing, some time later still: other nodes' files may take a while to show."""
    until = time.monotonic() + SEEN_LATE_S
    while (missing := [node for node in nodes if not store.has(node)]) and time.monotonic() <= until:
        time.sleep(1)
    return missing
