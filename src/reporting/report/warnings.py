"""What a run's artifacts warn of, in its report and at its end."""

from __future__ import annotations

from src.data.collapse import collapse_warnings
from src.generation.stage import spelling_warnings
from src.kernel.artifact import Node
from src.kernel.rows import METRICS, read_metrics
from src.kernel.store import Store
from src.pairing.win_probability import saturation_warnings


def warnings(nodes: list[Node], store: Store) -> list[str]:
    """A line a warning, the artifact's name in front; of numbers that are there."""
    return [f"{node.name}: {line}" for node in nodes for line in _of(node, store)]


def _of(node: Node, store: Store) -> list[str]:
    if node.stage.kind not in ("outside", "responses", "pairs") or not (store.path(node) / METRICS).exists():
        return []
    metrics = read_metrics(store.path(node))
    return collapse_warnings(metrics) + spelling_warnings(metrics) + saturation_warnings(metrics)
