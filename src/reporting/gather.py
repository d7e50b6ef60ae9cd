"""What a report shows of the iterations of a run, read from their artifacts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from src.kernel.artifact import Node
from src.kernel.rows import PAIRS, RANKING, RESPONSES, Row, read_metrics, read_rows
from src.kernel.store import Store

FINAL = ("loss_scaled", "chosen_logratio", "rejected_logratio")
"""Metrics of the training of which a report shows the mean over the last quarter of the steps."""


class Story(NamedTuple):
    """The tables are indexed by policy: `base`, which only `numbers` has, `iteration 1`, `iteration 2`, …"""

    numbers: pd.DataFrame
    """The evaluation of each policy, its divergence, and FINAL. The win rate of the base is that of the null."""
    ranking: pd.DataFrame
    """metrics.json of the rankings."""
    pairs: pd.DataFrame
    """metrics.json of the pairs."""
    steps: list[pd.DataFrame]
    """Metrics of each optimiser step, by iteration."""
    pair_rows: list[list[Row]]
    """PAIRS rows, by iteration."""
    held_out: list[list[Row]]
    """RESPONSES rows of each policy on the held-out prompts, the base first."""
    last_sampled: list[Row]
    """RESPONSES rows from which the last iteration took its pairs."""
    last_ranking: list[Row]
    """RANKING rows of the last iteration."""


def gather(nodes: Sequence[Node], store: Store, iterations: int) -> Story:
    """Reads all that the report of a finished run needs."""
    paths = {node.name: store.path(node) for node in nodes}
    every = [f"it{t}" for t in range(1, iterations + 1)]
    index = [f"iteration {t}" for t in range(1, iterations + 1)]

    def metrics(name: str) -> list[dict[str, Any]]:
        return [read_metrics(paths[f"{it}/{name}"]) for it in every]

    steps = [_steps(paths[f"{it}/policy"]) for it in every]
    evaluations = metrics("evaluation")
    trained = [
        {f"divergence_{key}": value for key, value in divergence.items()} | _final(frame) | evaluation
        for evaluation, divergence, frame in zip(evaluations, metrics("divergence"), steps, strict=True)
    ]
    return Story(
        numbers=pd.DataFrame([_base(evaluations[0]), *trained], index=["base", *index]),
        ranking=pd.DataFrame(metrics("ranking"), index=index),
        pairs=pd.DataFrame(metrics("pairs"), index=index),
        steps=steps,
        pair_rows=[read_rows(paths[f"{it}/pairs"], PAIRS) for it in every],
        held_out=[read_rows(paths[f"{policy}/answers"], RESPONSES) for policy in ("base", *every)],
        last_sampled=read_rows(paths[f"{every[-1]}/responses"], RESPONSES),
        last_ranking=read_rows(paths[f"{every[-1]}/ranking"], RANKING),
    )


def _base(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Picks what the evaluation of the first iteration says of the base."""
    own = {key.removeprefix("base_"): value for key, value in evaluation.items() if key.startswith("base_")}
    null = {key.replace("null_win", "win_over_base"): value for key, value in evaluation.items() if "null_win" in key}
    return own | null | {"divergence_kl_per_token": 0.0}


def _steps(policy: Path) -> pd.DataFrame:
    return pd.DataFrame([json.loads(line) for line in (policy / "metrics.jsonl").read_text().splitlines()])


def _final(steps: pd.DataFrame) -> dict[str, float]:
    return steps[list(FINAL)].tail(max(1, len(steps) // 4)).mean().to_dict()
