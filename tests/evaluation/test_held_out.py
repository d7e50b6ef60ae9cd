"""The held-out evaluation: win rates, what they can hide, the KL from the base, and intervals against slow twins."""

from __future__ import annotations

import gc
import itertools
import json
import math
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answer_rows import answered, written
from bad_models import nan
from conftest import build_policy
from made_up_rankings import NAN, sigma
from scipy import optimize, special

from src.evaluation.held_out import EVALUATION, Divergence, HeldOutEvaluation, length_controlled
from src.evaluation.statistics import bootstrap_interval, mean_interval, two_way
from src.kernel.config import UserError
from src.kernel.rows import RANKING, RESPONSES, Row, read_rows
from src.modeling.policy import load_policy
from src.pairing.win_probability import Estimator

NAMES = ("current", "previous", "base", "null")
PAIRWISE = Estimator(kind="pairwise", include_self=True, opponents="all", tau=1.0)


def scored(prompt: int, score: float, **terms: float) -> Row:
    named = [{"name": name, "values": [value]} for name, value in terms.items()]
    return {"prompt_id": f"p{prompt}", "logits": None, "scores": [score], "truncated": [False], "terms": named}


def joint(prompt: int, scores: list[float], **terms: list[float]) -> Row:
    """Rank four answers at once, with logits C_ij = s_i - s_j + 3: what is seen first is liked more."""
    logits = [[NAN if i == j else a - b + 3 for j, b in enumerate(scores)] for i, a in enumerate(scores)]
    named = [{"name": name, "values": values} for name, values in terms.items()]
    return {"prompt_id": f"p{prompt}", "logits": logits, "scores": None, "truncated": [False] * 4, "terms": named}


def evaluate(
    folder: Path,
    rankings: list[list[Row]],
    confidence: float = 0.95,
    estimator: Estimator = PAIRWISE,
    **answers: list[Row],
) -> tuple[dict[str, Any], list[Row]]:
    """Return metrics and rows of the stage on made-up artifacts."""
    inputs = [written(folder / name, (PLAIN | answers)[name], RESPONSES) for name in NAMES]
    inputs += [written(folder / f"ranking{i}", rows, RANKING) for i, rows in enumerate(rankings)]
    (folder / "out").mkdir()
    HeldOutEvaluation(confidence=confidence, estimator=estimator)(*inputs, out=folder / "out")
    text = (folder / "out" / "metrics.json").read_text()
    assert "NaN" not in text, "other programs read it, too"
    return json.loads(text), read_rows(folder / "out", EVALUATION)


# Of each policy's answer to three prompts.
SCORES = {"current": [1.0, 2.0, 0.5], "previous": [1.0, 1.0, 1.5], "base": [0.0, 2.0, 1.5], "null": [0.0, 3.0, -0.5]}
PLAIN = {name: [answered(p, f"{name} text") for p in range(3)] for name in NAMES}
SCALAR = [[scored(p, score) for p, score in enumerate(SCORES[name])] for name in NAMES]
JOINT = [[joint(p, [SCORES[name][p] for name in NAMES]) for p in range(3)]]


def test_win_rates_are_means_of_sigma_of_score_differences_prompt_by_prompt(tmp_path: Path) -> None:
    """Current minus base: 1, 0, -1; minus previous: 0, 1, -1; null minus base: 0, 1, -2.

    Intervals are Student's: mean ± t_{n-1} s / √n, s² the unbiased variance of the prompts' own win probabilities.
    """
    metrics, rows = evaluate(tmp_path, SCALAR, confidence=0.9)
    assert [row["prompt_id"] for row in rows] == ["p0", "p1", "p2"] and metrics["prompts"] == 3
    by_hand = {"win_over_base": [1, 0, -1], "win_over_previous": [0, 1, -1], "null_win": [0, 1, -2]}
    for name, differences in by_hand.items():
        values = list(map(sigma, differences))
        assert [row[name] for row in rows] == pytest.approx(values)
        half = special.stdtrit(2, 0.95) * np.std(values, ddof=1) / math.sqrt(3)
        expected = (np.mean(values), np.mean(values) - half, np.mean(values) + half)
        assert tuple(metrics[f"{name}{end}"] for end in ("", "_low", "_high")) == pytest.approx(expected)
    assert metrics["seen_accuracy"] is None and metrics["seen_checks"] == 0, "there are no checks"


def test_one_joint_ranking_says_what_four_scalar_ones_say(tmp_path: Path) -> None:
    """(C_ij - C_ji) / 2 = s_i - s_j: the liking for the first place goes out. The temperature holds for both.

    What counts for win rates over the policy (the estimator's other fields) counts for no single duel.
    """
    for tau in (1.0, 2.0):
        estimator = replace(PAIRWISE, tau=tau, include_self=tau == 1, opponents="all" if tau == 1 else "pair")
        metrics, rows = evaluate(tmp_path / f"joint{tau}", JOINT, estimator=estimator)
        other, _ = evaluate(tmp_path / f"scalar{tau}", SCALAR, estimator=estimator)
        wins = [name for name in metrics if "win" in name]
        assert len(wins) == 15 and [metrics[name] for name in wins] == pytest.approx([other[name] for name in wins])
        assert [row["win_over_base"] for row in rows] == pytest.approx([sigma(1 / tau), 0.5, sigma(-1 / tau)])
    # score: s_i = mean_j (C_ij - C_ji), the sum of both orders, so twice the difference.
    _, rows = evaluate(tmp_path / "score", JOINT, estimator=replace(PAIRWISE, kind="score"))
    assert [row["win_over_base"] for row in rows] == pytest.approx([sigma(2), 0.5, sigma(-2)])


def test_a_hard_win_is_a_whole_one_a_half_for_ties_and_the_spread_is_that_of_the_base(tmp_path: Path) -> None:
    """Base and null differ by 0, 1 and -2: variances 0, 1/2 and 2 over one degree of freedom, so tau² is 2.5 / 3."""
    for name, rankings in {"apart": SCALAR, "together": JOINT}.items():
        metrics, rows = evaluate(tmp_path / name, rankings, estimator=replace(PAIRWISE, tau="spread"))
        assert [row["hard_win_over_base"] for row in rows] == [1, 0.5, 0] and metrics["hard_win_over_base"] == 0.5
        assert metrics["tau"] == pytest.approx(math.sqrt(2.5 / 3))
        assert rows[0]["win_over_base"] == pytest.approx(sigma(1 / metrics["tau"]))
    even = [[scored(p, 1.0) for p in range(3)]] * 4
    with pytest.raises(UserError, match="^estimator.tau: .* do not differ; give a number"):
        evaluate(tmp_path / "even", even, estimator=replace(PAIRWISE, tau="spread"))


def test_length_control_says_what_the_win_rate_were_at_equal_length() -> None:
    """Against a general optimiser and sums by hand. Who wins by length alone has one half."""
    chance = np.random.default_rng(0)
    longer = chance.normal(30, 40, 200).round()
    wins = special.expit(0.4 + 2 * np.tanh(longer / longer.std(ddof=1)) + chance.normal(0, 1, 200))
    middle, low, high = length_controlled(wins, longer, 0.9)
    x = [(1.0, math.tanh(d / np.std(longer, ddof=1))) for d in longer]

    def loss(fit: np.ndarray) -> float:
        chances = [sigma(fit[0] * one + fit[1] * d) for one, d in x]
        return -sum(w * math.log(p) + (1 - w) * math.log(1 - p) for w, p in zip(wins, chances, strict=True))

    fit = optimize.minimize(loss, np.zeros(2), tol=1e-10).x
    chances = [sigma(fit[0] * one + fit[1] * d) for one, d in x]
    inverse = np.linalg.inv(sum(p * (1 - p) * np.outer(row, row) for row, p in zip(x, chances, strict=True)))
    meat = sum((w - p) ** 2 * np.outer(row, row) for row, w, p in zip(x, wins, chances, strict=True))
    half = special.ndtri(0.95) * math.sqrt((inverse @ meat @ inverse)[0, 0])
    assert (middle, low, high) == pytest.approx((sigma(fit[0]), sigma(fit[0] - half), sigma(fit[0] + half)), abs=1e-4)
    assert middle < wins.mean(), "it wins by length, too"
    only = special.expit(3 * np.tanh(longer / longer.std(ddof=1)))
    assert length_controlled(only, longer, 0.9)[0] == pytest.approx(0.5, abs=1e-3) and only.mean() > 0.6
    assert length_controlled(wins, np.full(200, 7.0), 0.9) == (wins.mean(), *mean_interval(wins, 0.9))
    assert length_controlled(np.ones(200), longer, 0.9)[0] > 0.95, "who always wins, wins at equal length"


def test_a_rankers_own_terms_go_to_the_policy_they_belong_to(tmp_path: Path) -> None:
    """Relevance of current, previous, base and null: .1, .2, .3, .4."""
    together = [joint(p, [0.0] * 4, relevance=[0.1, 0.2, 0.3, 0.4]) for p in range(3)]
    separate = [[scored(p, 0.0, relevance=relevance) for p in range(3)] for relevance in (0.1, 0.2, 0.3, 0.4)]
    for name, rankings in (("together", [together]), ("apart", separate)):
        metrics, _ = evaluate(tmp_path / name, rankings)
        assert (metrics["relevance"], metrics["base_relevance"]) == pytest.approx((0.1, 0.3))


def test_check_accuracies_are_over_single_checks_of_seen_and_of_unseen_kinds(tmp_path: Path) -> None:
    """Seen: 1 of 1, 0 of 2. Unseen: 0 of 1, 1 of 1. The base keeps all."""
    seen, unseen = {"kind": "words_at_most", "n": 2}, {"kind": "has_digit"}
    checks, texts = [[seen, unseen], [unseen, seen, seen], []], ["two words", "this has 4 words", "free"]
    current = [answered(p, text, checks[p]) for p, text in enumerate(texts)]
    base = [answered(p, "digit 7", checks[p]) for p in range(3)]
    metrics, rows = evaluate(tmp_path, SCALAR, current=current, base=base)
    assert (metrics["seen_checks"], metrics["unseen_checks"]) == (3, 2)
    assert (metrics["seen_accuracy"], metrics["unseen_accuracy"]) == pytest.approx((1 / 3, 1 / 2))
    assert (metrics["base_seen_accuracy"], metrics["base_unseen_accuracy"]) == (1, 1)
    assert [row["seen_kept"] for row in rows] == [1, 0, 0] and [row["unseen_kept"] for row in rows] == [0, 1, 0]


def test_length_ends_and_repetition_are_means_over_the_prompts(tmp_path: Path) -> None:
    texts = [("a b c", "stop"), ("a a a a", "length"), (" ", "stop")]
    current = [answered(p, text, finish=end) for p, (text, end) in enumerate(texts)]
    metrics, _ = evaluate(tmp_path, SCALAR, current=current)
    expected = {"tokens": (5 + 7 + 1) / 3, "words": (3 + 4 + 0) / 3, "finished": 2 / 3, "empty": 1 / 3}
    expected["repetition"] = (0 + 1 / 2 + 0) / 3  # aaa twice
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_an_interval_over_seeds_and_prompts_holds_the_truth_at_least_as_often_as_it_says() -> None:
    """300 made-up experiments a number of seeds, whose seeds or whose prompts differ more. Its p value is where it
    ends at 0.
    """
    chance, prompts = np.random.default_rng(0), 128
    for seeds, of_prompts, of_seeds in ((2, 0.2, 0.03), (3, 0.05, 0.03), (5, 0.2, 0.01), (10, 0.2, 0.01)):
        both = alone = 0
        for _ in range(300):
            noise = chance.normal(0, 0.2, (seeds, prompts)) + chance.normal(0, of_seeds, (seeds, 1))
            values = chance.normal(0, of_prompts, prompts) + noise
            (low, high), p = two_way(values, 0.95)
            both += low <= 0 <= high
            assert (p > 0.05) == (low < 0 < high)
            low, high = mean_interval(values.mean(1), 0.95)
            alone += low <= 0 <= high
        assert both >= 279 and (seeds < 5 or both < 299), (seeds, both)
        assert seeds < 5 or alone < 270, "seeds alone say too little"
    for shape in ((3, 1), (3, 3)):  # one prompt, and as many as seeds
        values = chance.random(shape)
        (low, high), alone = two_way(values, 0.9)[0], mean_interval(values.mean(1), 0.9)
        assert high - low >= alone[1] - alone[0] - 1e-12 and (shape[1] > 1 or (low, high) == pytest.approx(alone))
    assert two_way(np.full((3, 4), 0.2), 0.95) == ((pytest.approx(0.2), pytest.approx(0.2)), 0.0)


# The KL from the base --------------------------------------------------------------------------------------------

ANSWERS = [([3, 4, 5], [6, 7, 8, 9]), ([3], [10]), ([11, 12], [13, 14, 15, 16, 17, 18])]


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    rows = [answered(i, "", []) for i in range(len(ANSWERS))]
    for row, (prompt, ids) in zip(rows, ANSWERS, strict=True):
        row["prompt_token_ids"], row["responses"][0]["token_ids"] = prompt, ids
    return written(tmp_path / "responses", rows, RESPONSES)


def divergence(responses: Path, policy: Path, base: Path, batch: int = 2, chunk: int = 512) -> dict[str, float]:
    out = responses.with_name(f"out{batch}{chunk}")
    out.mkdir(exist_ok=True)
    Divergence(prompts=3, confidence=0.95, device="cpu", batch_answers=batch, head_chunk=chunk)(
        responses, policy, base, out=out
    )
    return json.loads((out / "metrics.json").read_text())


def naive_kl(policy: Path, base: Path) -> list[float]:
    """Sum pi(v) (log pi(v) - log pi_0(v)) over positions and tokens of every answer, from full logits."""
    models = [load_policy(folder, "float32", "cpu") for folder in (policy, base)]
    sums = []
    for prompt, ids in ANSWERS:
        with torch.no_grad():
            pi, base_pi = (model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1) for model in models)
        positions = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
        sums.append(sum(float((pi[t].exp() * (pi[t] - base_pi[t])).sum()) for t in positions))
    return sums


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_divergence_is_the_full_kl_at_every_position_of_the_answers(
    family: str, responses: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """11 answer tokens: 4 + 1 + 6. Gemma 2 caps its logits. It is no distance: there and back differ."""
    policy, base = request.getfixturevalue(family), build_policy(tmp_path / "base", family, seed=1)
    expected = naive_kl(policy, base)
    assert min(expected) > 0.01, "the two policies differ"
    for batch, chunk in ((1, 512), (2, 512), (3, 1), (3, 4), (3, 11)):
        metrics = divergence(responses, policy, base, batch=batch, chunk=chunk)
        assert metrics["kl_per_token"] == pytest.approx(sum(expected) / 11, rel=1e-4)
        assert metrics["kl_per_answer"] == pytest.approx(sum(expected) / 3, rel=1e-4)
    back = divergence(responses, base, policy)
    assert back["kl_per_answer"] == pytest.approx(sum(naive_kl(base, policy)) / 3, rel=1e-4)
    assert back["kl_per_answer"] != pytest.approx(sum(expected) / 3, rel=1e-3)


def test_one_model_at_a_time_is_in_memory(responses: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[Any]] = []

    def load(*arguments: Any) -> Any:
        assert not any(model() for model in loaded), "the first is still there"
        loaded.append(weakref.ref(model := load_policy(*arguments)))
        return model

    monkeypatch.setattr("src.evaluation.held_out.load_policy", load)
    gc.disable()  # or chance may free what a cycle holds
    try:
        divergence(responses, llama, llama)
    finally:
        gc.enable()
    assert len(loaded) == 2


def test_a_divergence_that_is_no_number_is_refused_by_prompt(responses: Path, llama: Path, tmp_path: Path) -> None:
    """A NaN in the last layer's norm spoils every position; the first of the prompts is named."""
    broken = Path(shutil.copytree(llama, tmp_path / "broken"))
    nan("model.norm.weight")(broken)
    first = read_rows(responses, RESPONSES)[0]
    for policy, base in ((broken, llama), (llama, broken)):
        line = f"^divergence: KL .* is NaN or infinity for the answer to prompt {first['prompt_id']}; look at "
        with pytest.raises(UserError, match=line):
            divergence(responses, policy, base)
        assert not list(tmp_path.glob("out*/metrics.json"))


# Intervals -------------------------------------------------------------------------------------------------------


def test_intervals_of_few_values_by_the_textbook() -> None:
    """Values 0.4 and 0.6: mean 0.5, standard error 0.1; t_1(.975) = 12.706 by any table."""
    assert mean_interval(np.array([0.4, 0.6]), 0.95) == pytest.approx((0.5 - 1.2706, 0.5 + 1.2706), abs=1e-4)
    assert mean_interval(np.array([0.7]), 0.95) == (0.0, 1.0), "one value says nothing"
    assert mean_interval(np.full(9, 0.5), 0.95) == (0.5, 0.5), "equal values are a point"


def test_the_bootstrap_is_that_of_all_resamples() -> None:
    """5^5 = 3,125 means; 10,000 drawn ones have their quantiles within a few percent."""
    values = np.random.default_rng(4).random(5)
    means = [sum(resample) / 5 for resample in itertools.product(values.tolist(), repeat=5)]
    for confidence in (0.5, 0.95):
        ends = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
        interval = bootstrap_interval((values,), np.mean, confidence, 10_000, seed=0)
        assert interval == pytest.approx(ends.tolist(), abs=0.04 * float(np.ptp(values)))
