"""The win-rate matrix: it sums to one and is blind to places; what else it writes; and its plan."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from answer_rows import answered, written
from made_up_rankings import NAN, sigma
from tiny_run import typed

from src.evaluation.held_out import Merge
from src.evaluation.win_matrix import FIRST_TURN, WinMatrixScores
from src.experiment.graph import nodes_of
from src.experiment.preflight import check_settings
from src.generation.stage import Generate
from src.kernel.config import UserError
from src.kernel.rows import RANKING, RESPONSES, ROWS, Row
from src.pairing.win_probability import Estimator

PAIRWISE = Estimator(kind="pairwise", include_self=True, opponents="all", tau=1.0)
NAMES = ("base", "it1", "it2", "dpo")
STAGE = WinMatrixScores(
    names=NAMES, last="it2", judge="duel", estimator=PAIRWISE, confidence=0.95, resamples=500, seed=0
)


def scored(prompt: int, scores: list[float], truncated: list[bool] | None = None) -> Row:
    return {"prompt_id": f"p{prompt}", "scores": scores, "truncated": truncated or [False] * len(scores)}


def compared(prompt: int, scores: list[float], noise: np.ndarray | float = 0.0) -> Row:
    """Directed logits, in which the answer that is shown first is liked more by 2."""
    lead = np.subtract.outer(scores, scores) + 2.0 + noise
    return scored(prompt, scores) | {"logits": (lead + np.diag([NAN] * len(lead))).tolist(), "scores": None}


def measured(
    folder: Path, ranking: list[Row], texts: list[list[str]] | None = None, **other: Any
) -> tuple[dict[str, float], list[Row]]:
    """Return metrics and rows of the stage for a ranking, and texts by prompt and policy."""
    texts = texts or [[f"{name} says {p}" for name in NAMES] for p in range(len(ranking))]
    parts = [
        written(folder / name, [answered(p, row[i]) for p, row in enumerate(texts)], RESPONSES)
        for i, name in enumerate(NAMES)
    ]
    merged, out = folder / "merged", folder / "out"
    merged.mkdir()
    out.mkdir()
    Merge()(*parts, out=merged)
    replace(STAGE, **other)(merged, written(folder / "ranking", ranking, RANKING), out=out)
    return json.loads((out / "metrics.json").read_text()), pq.read_table(out / ROWS).to_pylist()


def naive(ranking: list[Row], i: int, j: int, tau: float) -> float:
    """Average, over the prompts, sigma of half the difference of both orders."""
    wins = [sigma((row["logits"][i][j] - row["logits"][j][i]) / 2 / tau) for row in ranking]
    return sum(wins) / len(wins)


def test_it_sums_to_one_exactly_and_is_the_naive_mean(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    ranking = [compared(p, chance.normal(np.arange(4) / 3).tolist(), chance.normal(size=(4, 4))) for p in range(37)]
    metrics, rows = measured(tmp_path, ranking, estimator=replace(PAIRWISE, tau=0.7))
    for i, j in itertools.permutations(range(4), 2):
        key, back = f"{NAMES[i]}_over_{NAMES[j]}", f"{NAMES[j]}_over_{NAMES[i]}"
        assert metrics[key] == pytest.approx(naive(ranking, i, j, 0.7), abs=1e-12)
        assert metrics[key] + metrics[back] == 1
        assert metrics[f"{key}_low"] + metrics[f"{back}_high"] == 1
        assert metrics[f"{key}_low"] <= metrics[key] <= metrics[f"{key}_high"]
    assert metrics["items"] == 37 == len(rows)
    for key in ("win", "win_low", "win_high"):
        assert metrics[key] == metrics[key.replace("win", "it2_over_base")]
    for row, ranked in zip(rows, ranking, strict=True):
        assert row["item_id"] == ranked["prompt_id"] and row["score"] == row["it2_over_base"]
        assert row["dpo_over_it1"] == pytest.approx(naive([ranked], 3, 1, 0.7), abs=1e-12)


def test_lengths_truncation_and_wins_of_the_longer_are_written(tmp_path: Path) -> None:
    """Scores are lengths in tens, so the longer always wins."""
    texts = [["a" * 10, "a" * 10, "b" * 30, "c" * 20], ["d" * 20, "e" * 10, "f" * 50, "c" * 20]]
    ranking = [
        scored(p, [len(text) / 10 for text in row], [len(text) > 25 for text in row]) for p, row in enumerate(texts)
    ]
    metrics, _ = measured(tmp_path / "a", ranking, texts)
    expected = {"characters": [15, 10, 40, 20], "tokens": [15, 10, 40, 20], "truncated": [0, 0, 1, 0]}
    for end, values in {**expected, "distinct": [2, 2, 2, 1]}.items():
        assert [metrics[f"{name}_{end}"] for name in NAMES] == values, end
    gaps = [abs(a - b) / 10 for row in texts for a, b in itertools.combinations(map(len, row), 2) if a != b]
    assert metrics["longer_wins"] == pytest.approx(sum(map(sigma, gaps)) / len(gaps)) and metrics["longer_wins"] > 0.8
    # The start policy alone beside other checkpoints is held against the second.
    first, rows = measured(tmp_path / "b", ranking, texts, last="base")
    assert first["win"] == first["base_over_it1"]
    assert [row["score"] for row in rows] == [1 - row["it1_over_base"] for row in rows]
    with pytest.raises(UserError, match="ranks other prompts than"):
        measured(tmp_path / "c", ranking[::-1], texts)


# The plan ----------------------------------------------------------------------------------------------------------

NAME = "benchmark.win_matrix"
DPO = f"+model@{NAME}.policies.dpo=mistral_7b_instruct_v02"


def matrix_nodes(*words: str) -> dict[str, Any]:
    return {node.name: node for node in nodes_of(typed("benchmark=win_matrix", *words))}


def test_own_policies_bring_the_held_out_answers_that_they_have() -> None:
    """No two policies share a seed: the last iteration there may be, 900, has turn 901; benchmarks begin at 950."""
    nodes = matrix_nodes("iter=2", "seed=2", DPO, DPO.replace("dpo", "ipo"))
    merged, scores = (nodes[f"it2/win_matrix/{name}"] for name in ("joint_answers", "scores"))
    answers = ["base/answers", "it1/answers", "it2/answers", "win_matrix/dpo/answers", "win_matrix/ipo/answers"]
    assert [node.name for node in merged.inputs] == answers
    assert scores.stage.names == ("base", "it1", "it2", "dpo", "ipo")
    stages = [node.stage for node in nodes.values() if isinstance(node.stage, Generate)]
    seeds = [stage.seed - 2000 for stage in stages if stage.sampling.K == 1]
    assert len({*seeds}) == len(seeds) == 6 and max(seeds) == FIRST_TURN + 2 and 901 < FIRST_TURN < 950 - 40


def test_it_may_have_a_ranker_of_its_own() -> None:
    """It stands beside one of the run that has none of its keys, and is trusted by its own key."""
    armorm, trust = [f"ranker@{NAME}.ranker=armorm", "iter=1"], f"{NAME}.ranker.trust_remote_code"
    for words, key in (([], trust), (["ranker=armorm", f"{trust}=true"], "ranker.trust_remote_code")):
        with pytest.raises(UserError, match=f"^{key}:"):
            check_settings([*matrix_nodes(*armorm, *words).values()])
    nodes = matrix_nodes(*armorm, f"{trust}=true")
    check_settings([*nodes.values()])
    inputs = nodes["it1/win_matrix/joint_ranking"].inputs
    assert [node.name for node in inputs] == ["it1/win_matrix/joint_answers", "win_matrix/ranker/model0"]
