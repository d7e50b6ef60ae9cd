"""The numbers and rows a report shows, read from the artifacts of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.kernel.artifact import Node
from src.kernel.rows import PAIRS, RANKING, RESPONSES, Row, read_metrics, read_rows
from src.kernel.store import Store


class Iteration(NamedTuple):
    """What is known of iteration t."""

    t: int
    evaluation: dict[str, float]
    divergence: dict[str, float]
    pairs: dict[str, float]
    ranking_metrics: dict[str, float | None]
    steps: list[dict[str, float]]
    """Training metrics, one dict an optimiser step."""
    pair_rows: list[Row]
    held_out: list[Row]
    """RESPONSES rows of the new policy on the held-out prompts."""
    sampled: list[Row]
    """RESPONSES rows the pairs were taken from."""
    ranking: list[Row]

    def final(self, name: str) -> float:
        """Mean of a training metric over the last quarter of the steps."""
        values = [step[name] for step in self.steps]
        return float(np.mean(values[-max(1, len(values) // 4) :]))


class Story(NamedTuple):
    iterations: list[Iteration]
    base_held_out: list[Row]


def gather(nodes: list[Node], store: Store, iterations: int) -> Story:
    """Read everything the report needs from a finished run."""
    paths = {node.name: store.path(node) for node in nodes}
    base = read_rows(paths["base/answers"], RESPONSES)
    return Story([_iteration(t, paths) for t in range(1, iterations + 1)], base)


def _iteration(t: int, paths: dict[str, Path]) -> Iteration:
    def metrics(name: str) -> dict[str, Any]:
        return read_metrics(paths[f"it{t}/{name}"])

    steps = (paths[f"it{t}/policy"] / "metrics.jsonl").read_text().splitlines()
    return Iteration(
        t=t,
        evaluation=metrics("evaluation"),
        divergence=metrics("divergence"),
        pairs=metrics("pairs"),
        ranking_metrics=metrics("ranking"),
        steps=[json.loads(step) for step in steps],
        pair_rows=read_rows(paths[f"it{t}/pairs"], PAIRS),
        held_out=read_rows(paths[f"it{t}/answers"], RESPONSES),
        sampled=read_rows(paths[f"it{t}/responses"], RESPONSES),
        ranking=read_rows(paths[f"it{t}/ranking"], RANKING),
    )
