"""The win-rate matrix: sums to one, blind to places, its bootstrap, the held-out evaluation's own numbers, its plan."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from answer_rows import answered, written
from made_up_rankings import NAN, sigma
from tiny_run import typed

from src.evaluation.held_out import HeldOutEvaluation, Merge
from src.evaluation.win_matrix import FIRST_TURN, WinMatrixScores, longer_wins
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


class Made:
    """The output of the stage for a ranking, and texts by prompt and policy."""

    def __init__(
        self, folder: Path, ranking: list[Row], texts: list[list[str]] | None = None, stage: WinMatrixScores = STAGE
    ) -> None:
        texts = texts or [[f"{name} says {p}" for name in stage.names] for p in range(len(ranking))]
        self.parts = [
            written(folder / f"answers{i}", [answered(p, values[i]) for p, values in enumerate(texts)], RESPONSES)
            for i in range(len(stage.names))
        ]
        for place in ("merged", "out"):
            (folder / place).mkdir()
        Merge()(*self.parts, out=folder / "merged")
        self.ranking, self.out = written(folder / "ranking", ranking, RANKING), folder / "out"
        stage(folder / "merged", self.ranking, out=self.out)
        self.metrics: dict[str, Any] = json.loads((self.out / "metrics.json").read_text())
        self.rows: list[Row] = pq.read_table(self.out / ROWS).to_pylist()


def naive(ranking: list[Row], i: int, j: int) -> float:
    """Mean over the prompts of sigma of half the difference of both orders."""
    wins = [sigma((row["logits"][i][j] - row["logits"][j][i]) / 2) for row in ranking]
    return sum(wins) / len(wins)


def test_it_sums_to_one_exactly_and_is_the_naive_mean(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    ranking = [compared(p, chance.normal(np.arange(4) / 3).tolist(), chance.normal(size=(4, 4))) for p in range(37)]
    made = Made(tmp_path, ranking)
    for i, j in itertools.permutations(range(4), 2):
        key, back = f"{NAMES[i]}_over_{NAMES[j]}", f"{NAMES[j]}_over_{NAMES[i]}"
        assert made.metrics[key] == pytest.approx(naive(ranking, i, j), abs=1e-12)
        assert made.metrics[key] + made.metrics[back] == 1
        assert made.metrics[f"{key}_low"] + made.metrics[f"{back}_high"] == 1
        assert made.metrics[f"{key}_low"] <= made.metrics[key] <= made.metrics[f"{key}_high"]
    assert made.metrics["items"] == 37 == len(made.rows)
    for key in ("win", "win_low", "win_high"):
        assert made.metrics[key] == made.metrics[key.replace("win", "it2_over_base")]
    for row, ranked in zip(made.rows, ranking, strict=True):
        assert row["item_id"] == ranked["prompt_id"] and row["score"] == row["it2_over_base"]
        assert row["dpo_over_it1"] == pytest.approx(naive([ranked], 3, 1), abs=1e-12)


def test_it_says_what_the_held_out_evaluation_says(tmp_path: Path) -> None:
    """With the same answers, ranker and estimator: win_over_base and win_over_previous, prompt by prompt."""
    scores = np.random.default_rng(5).normal(size=(8, 4)).tolist()
    stage = replace(STAGE, names=("it2", "it1", "base", "null"), estimator=replace(PAIRWISE, tau=0.3))
    for judged in ("scores", "logits"):
        rank: Any = scored if judged == "scores" else compared
        made = Made(tmp_path / judged, [rank(p, values) for p, values in enumerate(scores)], stage=stage)
        rankings = [made.ranking]
        if judged == "scores":
            separate = [[scored(p, [values[i]]) for p, values in enumerate(scores)] for i in range(4)]
            rankings = [written(tmp_path / f"apart{i}", rows, RANKING) for i, rows in enumerate(separate)]
        (out := tmp_path / f"{judged}_held_out").mkdir()
        HeldOutEvaluation(confidence=0.95, estimator=stage.estimator)(*made.parts, *rankings, out=out)
        expected = json.loads((out / "metrics.json").read_text())
        for key, ours in (("win_over_base", "it2_over_base"), ("win_over_previous", "it2_over_it1")):
            assert made.metrics[ours] == pytest.approx(expected[key], abs=1e-12)
        theirs = pq.read_table(out / ROWS).column("win_over_base").to_pylist()
        assert [1 - row["base_over_it2"] for row in made.rows] == pytest.approx(theirs, abs=1e-12)


def test_lengths_truncation_and_wins_of_the_longer_are_written(tmp_path: Path) -> None:
    """Scores are lengths in tens, so the longer always wins."""
    texts = [["a" * 10, "a" * 10, "b" * 30, "c" * 20], ["d" * 20, "e" * 10, "f" * 50, "c" * 20]]
    rows = [
        scored(p, [len(text) / 10 for text in row], [len(text) > 25 for text in row]) for p, row in enumerate(texts)
    ]
    made = Made(tmp_path / "a", rows, texts)
    metrics = made.metrics
    assert [metrics[f"{name}_characters"] for name in NAMES] == [15, 10, 40, 20]
    assert [metrics[f"{name}_tokens"] for name in NAMES] == [15, 10, 40, 20], "a token a character here"
    assert [metrics[f"{name}_truncated"] for name in NAMES] == [0, 0, 1, 0]
    assert [metrics[f"{name}_distinct"] for name in NAMES] == [2, 2, 2, 1]
    gaps = [abs(a - b) / 10 for row in texts for a, b in itertools.combinations(map(len, row), 2) if a != b]
    assert metrics["longer_wins"] == pytest.approx(sum(map(sigma, gaps)) / len(gaps)) and metrics["longer_wins"] > 0.8
    assert longer_wins(np.full((3, 2, 2), 0.7), np.full((3, 2), 9.0)) is None
    # The start policy alone beside other checkpoints is held against the second.
    first = Made(tmp_path / "b", rows, texts, stage=replace(STAGE, last="base"))
    assert first.metrics["win"] == first.metrics["base_over_it1"]
    assert [row["score"] for row in first.rows] == [1 - row["it1_over_base"] for row in first.rows]
    with pytest.raises(UserError, match="ranks other prompts than"):
        Made(tmp_path / "c", rows[::-1], texts)


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


@pytest.mark.parametrize(
    ("word", "line"),
    [
        (f"{NAME}.of=[it1]", f"{NAME}: needs a policy of the run and another"),
        (DPO.replace("dpo", "it1"), f"{NAME}: policies.it1: policies of the run are called so"),
    ],
)
def test_what_is_wrong_is_one_line_before_any_work(word: str, line: str) -> None:
    with pytest.raises(UserError, match=rf"^{re.escape(line)}[^\n]*$"):
        nodes_of(typed("iter=1", "benchmark=win_matrix", word))
