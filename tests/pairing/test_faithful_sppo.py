"""The SPPO experiment against its sources: what its paper and its public code do, as plain loops over numbers."""

from __future__ import annotations

import random
from functools import cache
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import inputs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up_pairs import responses, run_stage
from made_up_rankings import NAN, sigma
from tiny_run import typed

from src.experiment.graph import nodes_of
from src.experiment.run import Run
from src.kernel.rows import REFERENCE, Row, read_rows
from src.methods.method import PairLogps, alignment_of
from src.modeling.logps import bind_forward
from src.modeling.policy import load_policy
from src.training.batch import collate, pair_up
from src.training.metrics import expected_first_loss
from src.training.recipe import Lengths

K, ETA = 5, 1000.0
SEEDS, BOTH = range(3), ("paper", "code")
Matrix = list[list[float]]


@cache
def run_of(variant: str, *more: str, experiment: str = "mistral_7b_pairrm_sppo") -> Run:
    return typed(f"experiment={experiment}", f"+variant={variant}", *more)


def stage_of(run: Run, name: str) -> Any:
    """As the run wires it."""
    return next(node.stage for node in nodes_of(run) if node.name == name)


# What the sources do -----------------------------------------------------------------------------------------------


def builder_of_the_code(logits: Matrix) -> Matrix:
    """s_i = mean_j (C_ij - C_ji), itself a 0 among the K; P_ij = sigma(s_i - s_j)."""
    scores = [0.0] * K
    for i, j in permutations(range(K), 2):
        scores[i] += (logits[i][j] - logits[j][i]) / K
    return [[sigma(scores[i] - scores[j]) for j in range(K)] for i in range(K)]


def builder_of_the_paper(logits: Matrix) -> Matrix:
    """P_ij = sigma of the mean of both orders."""
    return [[0.5 if i == j else sigma((logits[i][j] - logits[j][i]) / 2) for j in range(K)] for i in range(K)]


BUILDERS = {"code": builder_of_the_code, "paper": builder_of_the_paper}


def best_and_worst(matrix: Matrix) -> tuple[int, int, list[float]]:
    """Win rates over all K, an answer's own 1/2 included; the place of the largest and of the smallest."""
    wins = [sum(row) / K for row in matrix]
    return wins.index(max(wins)), wins.index(min(wins)), wins


def cycles_of(matrix: Matrix) -> int:
    """i beats j beats k beats i, each met at its three beginnings."""
    return sum(min(matrix[i][j], matrix[j][k], matrix[k][i]) > 0.5 for i, j, k in permutations(range(K), 3)) // 3


def loss_of_the_code(chosen: float, rejected: float, chosen_win: float, rejected_win: float) -> float:
    return ((chosen - ETA * (chosen_win - 0.5)) ** 2 + (rejected - ETA * (rejected_win - 0.5)) ** 2) / 2


def joint_twin(prompt: list[int], chosen: list[int], rejected: list[int], most: int, total: int) -> list[list[int]]:
    """First the front of the prompt, then the ends of both answers, where prompt and longer answer are over."""
    longer = max(len(chosen), len(rejected))
    if len(prompt) + longer > total and len(prompt) > most:
        prompt = prompt[len(prompt) - most :]
    if len(prompt) + longer > total:
        chosen, rejected = (
            [answer[t] for t in range(len(answer)) if t < total - most] for answer in (chosen, rejected)
        )
    return [prompt, chosen, rejected]


# Pairs -------------------------------------------------------------------------------------------------------------


def random_logits(seed: int, prompts: int = 40) -> list[Matrix]:
    """Directed: C_ij and C_ji have nothing to do with each other. From near ties to sure wins, the last one sure."""
    chance = random.Random(seed)
    spreads = [chance.choice([0.03, 0.5, 1.0, 3.0, 40.0]) for _ in range(prompts)]
    drawn = [[[NAN if i == j else chance.gauss(0.2, s) for j in range(K)] for i in range(K)] for s in spreads]
    return [*drawn, [[NAN if i == j else 50.0 * (j - i) for j in range(K)] for i in range(K)]]


def paired(folder: Path, run: Run, matrices: list[Matrix], texts: list[list[int]]) -> tuple[list[Row], Row]:
    """The run's own Pair stage on these matrices, and what it counts; `texts` are the K answers of every prompt."""
    rows = [responses(f"p{number}", texts) for number in range(len(matrices))]
    return run_stage(stage_of(run, "it1/pairs"), folder, rows, [{"scores": None, "logits": one} for one in matrices])


DIFFERENT, SAME = [[n, 1, n] for n in range(K)], [[7, 7]] * K


def test_pairs_are_those_of_the_source(tmp_path: Path) -> None:
    for variant, seed in product(BOTH, SEEDS):
        matrices = random_logits(seed)
        pairs, metrics = paired(tmp_path / f"{variant}{seed}", run_of(variant), matrices, DIFFERENT)
        cyclic = 0
        for pair, logits in zip(pairs, matrices, strict=True):
            matrix = BUILDERS[variant](logits)
            best, worst, wins = best_and_worst(matrix)
            assert (pair["chosen_index"], pair["rejected_index"]) == (best, worst), (variant, seed)
            assert (pair["chosen_win"], pair["rejected_win"]) == pytest.approx((wins[best], wins[worst]), abs=1e-6)
            assert pair["chosen_beats_rejected"] == pytest.approx(matrix[best][worst], abs=1e-6)
            cyclic += cycles_of(matrix)
        assert metrics["intransitive_triads"] == pytest.approx(cyclic / (10 * len(matrices)))
        assert (cyclic == 0) == (variant == "code"), "the code's probabilities come from one score an answer"
        assert (pairs[-1]["chosen_win"], pairs[-1]["rejected_win"]) == pytest.approx((0.9, 0.1), abs=1e-9)


def test_the_code_keeps_five_identical_answers_and_they_ask_for_nothing(tmp_path: Path) -> None:
    """PairRM then says the same of every order: all win rates are 1/2, both targets 0."""
    level = [[NAN if i == j else 0.3 for j in range(K)] for i in range(K)]
    run = run_of("code")
    (pair,), metrics = paired(tmp_path, run, [level], SAME)
    assert pair["chosen_token_ids"] == pair["rejected_token_ids"] and metrics["identical_left_out"] == 0
    assert (pair["chosen_win"], pair["rejected_win"]) == (0.5, 0.5)
    assert expected_first_loss(run.method, [pair]) == 0


# The loss ----------------------------------------------------------------------------------------------------------


def random_pairs(seed: int, count: int = 64) -> PairLogps:
    chance = torch.Generator().manual_seed(seed)
    logps = [-300 * torch.rand(count, generator=chance) for _ in range(4)]
    rest = [torch.rand(count, generator=chance) for _ in range(7)]
    return PairLogps(*[*logps, *rest])


def logratios(p: PairLogps) -> list[tuple[float, float]]:
    columns = [column.double().tolist() for column in p[:4]]
    return [(chosen - ref_chosen, rejected - ref) for chosen, rejected, ref_chosen, ref in zip(*columns, strict=True)]


def test_the_loss_is_the_sources() -> None:
    for variant, seed in product(("paper", "code", "card"), SEEDS):
        p = random_pairs(seed)
        wins = zip(p.chosen_win.tolist(), p.rejected_win.tolist(), strict=True)
        expected = [loss_of_the_code(*each, *win) for each, win in zip(logratios(p), wins, strict=True)]
        assert run_of(variant).method.loss(p).tolist() == pytest.approx(expected, rel=1e-5, abs=0.1), (variant, seed)


def test_the_first_loss_is_the_one_expected_of_the_pairs(llama: Path, tmp_path: Path) -> None:
    """eta^2 mean((P_w - 1/2)^2 + (P_l - 1/2)^2) / 2, through the real reference and forward pass of a tiny policy.
    Policy and reference are the same, so the log-ratios are rounding beside targets of hundreds.
    """
    for variant in BOTH:
        run, place = run_of(variant, "hardware=cpu", "ranker.precision=float32"), tmp_path / variant
        matrices = random_logits(seed=9, prompts=6)
        pairs, metrics = paired(place, run, matrices, DIFFERENT)
        stage_of(run, "it1/reference")(place / "pairs", llama, out=place / "reference")
        batch = collate(read_rows(place / "reference", REFERENCE), run.train.lengths)
        model: Any = load_policy(llama, "float32", "cpu")
        bind_forward(model, alignment_of(run.method), 16, "segments")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            first = float(run.method.loss(pair_up(model(batch.packed), batch)).mean())
        found = [best_and_worst(BUILDERS[variant](logits))[2] for logits in matrices]
        squares = [(max(wins) - 0.5) ** 2 + (min(wins) - 0.5) ** 2 for wins in found]
        expected = ETA**2 * sum(squares) / len(squares) / 2
        assert [first, expected_first_loss(run.method, pairs)] == pytest.approx([expected] * 2, rel=1e-3), variant
        assert metrics["expected_loss_unit"] * ETA**2 == pytest.approx(expected, rel=1e-4), variant


# Limits ------------------------------------------------------------------------------------------------------------


@settings(max_examples=inputs(100))
@given(st.tuples(st.integers(0, 40), *[st.integers(1, 40)] * 2), st.integers(1, 20), st.integers(1, 20))
@example((0, 1, 1), 1, 1)
def test_pairs_are_cut_as_one_token_at_a_time(lengths: tuple[int, int, int], most: int, room: int) -> None:
    """The code: nothing at all is cut where prompt and longer answer fit, not even a prompt beyond its own limit.
    Separately: the prompt to its own limit, each answer to what is left.
    """
    prompt, chosen, rejected = (list(range(100 * i, 100 * i + n)) for i, n in enumerate(lengths))
    joint, separate = (
        Lengths(max_prompt=most, max_total=most + room, truncation=kind).fit(prompt, chosen, rejected)
        for kind in ("joint", "separate")
    )
    assert list(joint) == joint_twin(prompt, chosen, rejected, most, most + room)
    kept = prompt[max(0, len(prompt) - most) :]
    assert list(separate) == [kept, *(answer[: most + room - len(kept)] for answer in (chosen, rejected))]
