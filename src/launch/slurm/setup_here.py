"""Models and prompts, fetched where the command is given: nodes may have no network."""

from __future__ import annotations

from src.experiment.links import link
from src.experiment.sweep import Sweep
from src.experiment.tasks import SETUP
from src.kernel.artifact import Node


def set_up(sweep: Sweep) -> None:
    """Make what the setup jobs would make, and link it in the run folders."""
    missing = missing_setup(sweep)
    for number, node in enumerate(missing, 1):
        print(f"[{number}/{len(missing)}] {node.name}", flush=True)
        sweep.store.make(node)
        sweep.made(node)
        for point, nodes in zip(sweep.points, sweep.nodes, strict=True):
            if any(one.key == node.key for one in nodes):
                link(point.folder, node, sweep.store)


def missing_setup(sweep: Sweep) -> list[Node]:
    """Each once."""
    found = {node.key: node for nodes in sweep.nodes for node in nodes if node.job == SETUP and sweep.missing(node)}
    return list(found.values())
