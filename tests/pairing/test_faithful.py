"""Published systems against their sources: what their papers and public code do, as plain loops over numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache
from itertools import permutations, product
from pathlib import Path

import pytest
import torch
from conftest import inputs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up_pairs import responses, run_stage
from made_up_rankings import NAN, matrix_of, scalar, sigma
from tiny_run import typed

from src.experiment.graph import nodes_of
from src.experiment.run import Run
from src.kernel.rows import Row
from src.methods.method import PairLogps
from src.training.recipe import Lengths

SPPO, WPO, DPO = "mistral_7b_pairrm_sppo", "gemma2_9b_it_wpo_hb", "gemma2_9b_it_dpo_hb"
K = 5
Matrix = list[list[float]]


@cache
def run_of(experiment: str, variant: str) -> Run:
    return typed(f"experiment={experiment}", f"+variant={variant}")


def paired(folder: Path, run: Run, rows: list[Row], ranked: list[Row]) -> tuple[list[Row], Row]:
    """Run the experiment's own Pair stage; return its pairs and metrics."""
    return run_stage(next(node.stage for node in nodes_of(run) if node.name == "it1/pairs"), folder, rows, ranked)


# SPPO's pairs ------------------------------------------------------------------------------------------------------


def wins_of_the_code(logits: Matrix) -> Matrix:
    """s_i = mean_j (C_ij - C_ji), itself a 0 among the K; P_ij = sigma(s_i - s_j)."""
    scores = [0.0] * K
    for i, j in permutations(range(K), 2):
        scores[i] += (logits[i][j] - logits[j][i]) / K
    return [[sigma(scores[i] - scores[j]) for j in range(K)] for i in range(K)]


def wins_of_the_paper(logits: Matrix) -> Matrix:
    """P_ij = sigma of the mean of both orders."""
    return [[0.5 if i == j else sigma((logits[i][j] - logits[j][i]) / 2) for j in range(K)] for i in range(K)]


def random_logits(seed: int, prompts: int = 40) -> list[Matrix]:
    """Directed logits, from near ties to sure wins. C_ij does not follow from C_ji. The last prompt has sure wins."""
    chance = random.Random(seed)
    spreads = [chance.choice([0.03, 0.5, 1.0, 3.0, 40.0]) for _ in range(prompts)]
    drawn = [[[NAN if i == j else chance.gauss(0.2, s) for j in range(K)] for i in range(K)] for s in spreads]
    return [*drawn, [[NAN if i == j else 50.0 * (j - i) for j in range(K)] for i in range(K)]]


def cycles_of(matrix: Matrix) -> int:
    """Count i beats j beats k beats i; each is met at its three beginnings."""
    return sum(min(matrix[i][j], matrix[j][k], matrix[k][i]) > 0.5 for i, j, k in permutations(range(K), 3)) // 3


def test_sppo_pairs_best_and_worst_with_the_probabilities_of_the_source(tmp_path: Path) -> None:
    """Both choose by the mean logit over all K answers; a win rate is over them too, an answer's own 1/2 included."""
    for (variant, source), seed in product({"paper": wins_of_the_paper, "code": wins_of_the_code}.items(), range(3)):
        logits = random_logits(seed)
        rows = [responses(f"p{n}", [[k, 1, k] for k in range(K)]) for n in range(len(logits))]
        ranked = [matrix_of(one) for one in logits]
        pairs, metrics = paired(tmp_path / f"{variant}{seed}", run_of(SPPO, variant), rows, ranked)
        matrices = [source(one) for one in logits]
        for pair, matrix, one in zip(pairs, matrices, logits, strict=True):
            scores = [sum(one[i][j] - one[j][i] for j in range(K) if j != i) for i in range(K)]
            best, worst = scores.index(max(scores)), scores.index(min(scores))
            wins = [sum(row) / K for row in matrix]
            assert (pair["chosen_index"], pair["rejected_index"]) == (best, worst), (variant, seed)
            assert (pair["chosen_win"], pair["rejected_win"]) == pytest.approx((wins[best], wins[worst]), abs=1e-6)
            assert pair["chosen_beats_rejected"] == pytest.approx(matrix[best][worst], abs=1e-6)
        cyclic = sum(map(cycles_of, matrices))
        assert metrics["intransitive_triads"] == pytest.approx(cyclic / (10 * len(matrices)))
        assert (cyclic == 0) == (variant == "code"), "the code's probabilities come from one score per answer"


# WPO's pairs -------------------------------------------------------------------------------------------------------

Answers = list[tuple[float, int]]
"""The score and the length of each answer."""


def rule_v1(answers: Answers) -> set[tuple[int, int]]:
    """The chosen has 5 or 6, the highest there is; the rejected is any at least a point lower."""
    pairs = set()
    for (i, (chosen, _)), (j, (rejected, _)) in product(enumerate(answers), repeat=2):
        if chosen >= 5 and chosen == max(score for score, _ in answers) and rejected <= chosen - 1:
            pairs.add((i, j))
    return pairs


def rule_v2(answers: Answers) -> set[tuple[int, int]]:
    """Highest against lowest; of several best the shortest; of several worst those nearest to it in length."""
    highest, lowest = max(answers)[0], min(answers)[0]
    shortest = min(tokens for score, tokens in answers if score == highest)
    pairs = set()
    for i in (i for i, answer in enumerate(answers) if answer == (highest, shortest)):
        worst = [j for j, (score, _) in enumerate(answers) if score == lowest and j != i]
        nearest = min(abs(answers[j][1] - shortest) for j in worst)
        pairs |= {(i, j) for j in worst if abs(answers[j][1] - shortest) == nearest}
    return pairs


def test_wpo_pairs_are_those_of_the_source(tmp_path: Path) -> None:
    """Six answers with many ties, judged 1 to 6. Any pair that the rule allows is right; none where it allows none."""
    chance = random.Random(3)
    prompts = [[(float(chance.randint(1, 6)), chance.randint(1, 4)) for _ in range(6)] for _ in range(200)]
    rows = [responses(f"p{n}", [[k] * answer[1] for k, answer in enumerate(one)]) for n, one in enumerate(prompts)]
    ranked = [scalar([score for score, _ in one]) for one in prompts]
    v1 = typed("ranker=llm_judge_points_gpt4", "pairing=wpo_v1")
    for variant, run, rule in (
        ("v1", v1, rule_v1),
        *((name, run_of(WPO, name), rule_v2) for name in ("paper", "card")),
    ):
        pairs, _ = paired(tmp_path / variant, run, rows, ranked)
        made = {pair["prompt_id"]: (pair["chosen_index"], pair["rejected_index"]) for pair in pairs}
        for n, answers in enumerate(prompts):
            assert made.get(f"p{n}") in (rule(answers) or {None}), (variant, answers)
        assert (len(made) < len(prompts)) == (variant == "v1"), "v2 has a pair for every prompt"


# Losses ------------------------------------------------------------------------------------------------------------

Loss = Callable[[float, float, dict[str, float]], float]
"""The loss of both log-ratios and the other columns of a pair."""


def sppo(chosen: float, rejected: float, pair: dict[str, float]) -> float:
    eta = 1000
    errors = chosen - eta * (pair["chosen_win"] - 0.5), rejected - eta * (pair["rejected_win"] - 0.5)
    return (errors[0] ** 2 + errors[1] ** 2) / 2


def dpo(chosen: float, rejected: float, pair: dict[str, float]) -> float:
    return math.log(1 + math.exp(-0.01 * (chosen - rejected)))


def wpo(chosen: float, rejected: float, pair: dict[str, float]) -> float:
    weight = math.exp(pair["chosen_log_weight"]) * math.exp(pair["rejected_log_weight"])
    return weight * dpo(chosen, rejected, pair)


def wpo_of_the_code(chosen: float, rejected: float, pair: dict[str, float]) -> float:
    return min(wpo(chosen, rejected, pair), dpo(chosen, rejected, pair))


SOURCES: list[tuple[str, str, Loss]] = [
    *((SPPO, variant, sppo) for variant in ("paper", "code", "card")),
    *((DPO, variant, dpo) for variant in ("paper", "code", "card")),
    (WPO, "paper", wpo),
    (WPO, "code", wpo_of_the_code),
    (WPO, "card", wpo_of_the_code),
]


@pytest.mark.parametrize(("experiment", "variant", "source"), SOURCES)
def test_the_loss_is_that_of_the_source(experiment: str, variant: str, source: Loss) -> None:
    chance = torch.Generator().manual_seed(4)
    logps = -300 * torch.rand(4, 64, generator=chance)
    log_weights = torch.randn(2, 64, generator=chance)
    wins = torch.rand(3, 64, generator=chance)
    pairs = PairLogps(*logps, *torch.ones(2, 64), *log_weights, *wins)
    expected = []
    for values in zip(*(column.tolist() for column in pairs), strict=True):
        pair = dict(zip(PairLogps._fields, values, strict=True))
        chosen, rejected = (pair[f"policy_{side}"] - pair[f"ref_{side}"] for side in ("chosen", "rejected"))
        expected.append(source(chosen, rejected, pair))
    method = run_of(experiment, variant).method
    assert (method.loss(pairs) / method.loss_unit).tolist() == pytest.approx(
        [loss / method.loss_unit for loss in expected], rel=1e-5, abs=1e-7
    )


# Limits ------------------------------------------------------------------------------------------------------------


def cut_together(prompt: list[int], chosen: list[int], rejected: list[int], most: int, total: int) -> list[list[int]]:
    """First the front of the prompt, then the ends of both answers, where prompt and longer answer are over."""
    longer = max(len(chosen), len(rejected))
    if len(prompt) + longer > total and len(prompt) > most:
        prompt = prompt[len(prompt) - most :]
    if len(prompt) + longer > total:
        chosen, rejected = (
            [answer[t] for t in range(len(answer)) if t < total - most] for answer in (chosen, rejected)
        )
    return [prompt, chosen, rejected]


@settings(max_examples=inputs(100))
@given(st.tuples(st.integers(0, 40), *[st.integers(1, 40)] * 2), st.integers(1, 20), st.integers(1, 20))
@example((0, 1, 1), 1, 1)
def test_pairs_are_cut_as_one_token_at_a_time(lengths: tuple[int, int, int], most: int, room: int) -> None:
    """The code cuts nothing where prompt and longer answer fit, not even a prompt beyond its own limit.

    Separately, the prompt is cut to its own limit, and each answer to what is left.
    """
    prompt, chosen, rejected = (list(range(100 * i, 100 * i + n)) for i, n in enumerate(lengths))
    joint, separate = (
        Lengths(max_prompt=most, max_total=most + room, truncation=kind).fit(prompt, chosen, rejected)
        for kind in ("joint", "separate")
    )
    assert list(joint) == cut_together(prompt, chosen, rejected, most, most + room)
    kept = prompt[max(0, len(prompt) - most) :]
    assert list(separate) == [kept, *(answer[: most + room - len(kept)] for answer in (chosen, rejected))]
