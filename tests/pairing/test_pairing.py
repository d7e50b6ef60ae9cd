"""The stage that makes pairs: its rows, its filters, and what it counts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from made_up_pairs import pair_up, stage  # noqa: F401
from made_up_rankings import NAN, matrix_of, scalar, sigma

from src.kernel.config import UserError
from src.methods.sppo import SPPO
from src.pairing.rules import AllAnswers, WPOv1
from src.training.metrics import expected_first_loss

# Rows --------------------------------------------------------------------------------------------------------------


def test_the_best_is_chosen_the_worst_rejected_with_their_probabilities(tmp_path: Path) -> None:
    """Scores 0, 2, 1: wins (1/2 + s(-2) + s(-1)) / 3, (1/2 + s(2) + s(1)) / 3, 1/2."""
    (pair,), metrics = pair_up(tmp_path, [([[1], [2, 2], [3]], scalar([0.0, 2.0, 1.0]))])
    assert (pair["chosen_token_ids"], pair["rejected_token_ids"], pair["prompt_token_ids"]) == ([2, 2], [1], [7])
    assert (pair["chosen_index"], pair["rejected_index"]) == (1, 0)
    assert (pair["chosen_source"], pair["rejected_source"]) == ("from [2, 2]", "from [1]")
    best, worst = (0.5 + sigma(2) + sigma(1)) / 3, (0.5 + sigma(-2) + sigma(-1)) / 3
    assert pair["chosen_win"] == metrics["chosen_win"] == pytest.approx(best)
    assert pair["rejected_win"] == pytest.approx(worst)
    assert pair["chosen_beats_rejected"] == pytest.approx(sigma(2))
    assert metrics["win_margin"] == pytest.approx(best - worst)
    assert metrics["expected_loss_unit"] == pytest.approx(((best - 0.5) ** 2 + (worst - 0.5) ** 2) / 2)
    assert (metrics["prompts"], metrics["pairs"], metrics["prompts_without_pair"]) == (1, 1, 0)
    assert (metrics["chosen_tokens"], metrics["rejected_tokens"], metrics["intransitive_triads"]) == (2, 1, 0)


def test_a_rule_may_give_many_pairs_a_prompt_or_none(tmp_path: Path) -> None:
    """Of three answers the ring is best-middle, middle-worst, best-worst; rows stay in the order of the prompts."""
    prompt = ([[1], [2], [3]], scalar([0.0, 2.0, 1.0]))
    pairs, metrics = pair_up(tmp_path / "all", [prompt, prompt, ([[1]], scalar([1.0]))], rule=AllAnswers())
    found = [(pair["prompt_id"], pair["chosen_index"], pair["rejected_index"]) for pair in pairs]
    assert found == [(p, *indices) for p in ("p0", "p1") for indices in ((1, 2), (2, 0), (1, 0))]
    assert (metrics["prompts"], metrics["pairs"], metrics["prompts_without_pair"]) == (3, 6, 1)
    good = ([[1], [2], [3]], scalar([0.0, 5.0, 4.5]))
    pairs, metrics = pair_up(tmp_path / "v1", [prompt, good], rule=WPOv1(chosen_from=5.0, gap=1.0))
    assert [(pair["prompt_id"], pair["chosen_index"], pair["rejected_index"]) for pair in pairs] == [("p1", 1, 0)]
    assert (metrics["prompts"], metrics["pairs"], metrics["prompts_without_pair"]) == (2, 1, 1)


# Filters -----------------------------------------------------------------------------------------------------------

SAME, OTHER = ([[1, 2], [1, 2]], scalar([1.0, 0.0])), ([[1], [2]], scalar([0.0, 1.0]))
LONG, CLOSE = ([[1], [2] * 9], scalar([0.0, 1.0])), ([[1], [2]], scalar([0.0, 0.1]))


def test_a_pair_is_left_out_for_one_reason_and_counted_under_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SAME also has no margin; LONG differs by 8 tokens; CLOSE by (s(.1) - s(-.1)) / 2 = .025; OTHER by .23."""
    pairs, metrics = pair_up(tmp_path / "a", [SAME, LONG, CLOSE, OTHER, LONG], min_margin=0.2, max_length_gap=7)
    assert [p["prompt_id"] for p in pairs] == ["p3"]
    assert [metrics[f"{reason}_left_out"] for reason in ("identical", "margin", "length")] == [1, 1, 2]
    assert (metrics["prompts"], metrics["pairs"], metrics["prompts_without_pair"]) == (5, 1, 4)
    assert "4 of 5 prompts have no pair" in capsys.readouterr().out
    pairs, metrics = pair_up(tmp_path / "b", [SAME, OTHER], drop_identical=False)
    assert (len(pairs), metrics["pairs"], metrics["identical_left_out"], capsys.readouterr().out) == (2, 2, 0, "")
    sure = ([[1], [2] * 9], scalar([-1e6, 1e6]))  # 3/4 and 1/4
    pairs, _ = pair_up(tmp_path / "c", [sure], min_margin=0.5, max_length_gap=8)
    assert len(pairs) == 1, "limits themselves are kept"


def test_where_no_pair_is_left_the_line_says_what_to_change(tmp_path: Path) -> None:
    cases: list[tuple[Any, dict[str, Any], list[str]]] = [
        ([SAME, SAME], {}, ["2 identical", "sampling.temperature"]),
        ([CLOSE], {"min_margin": 0.2}, ["pairing.filters.min_margin"]),
        ([SAME, LONG], {"max_length_gap": 7}, ["1 identical", "1 of lengths", "pairing.filters.max_length_gap"]),
        ([OTHER], {"rule": WPOv1(chosen_from=5.0, gap=1.0)}, ["pairing.rule WPOv1(chosen_from=5.0, gap=1.0)"]),
    ]
    for prompts, changes, words in cases:
        with pytest.raises(UserError) as refused:
            pair_up(tmp_path, prompts, **changes)
        said = str(refused.value)
        assert all(word in said for word in words) and "\n" not in said, said


# Metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_of_the_pairs_are_those_found_by_hand(tmp_path: Path) -> None:
    """P(chosen) of OTHER, CLOSE: (1/2 + s(1)) / 2, (1/2 + s(.1)) / 2; their quantiles lie on the line between."""
    pairs, metrics = pair_up(tmp_path, [OTHER, CLOSE])
    sppo = SPPO(name="sppo", eta=30.0, center=0.5)
    assert metrics["expected_loss_unit"] == pytest.approx(expected_first_loss(sppo, pairs) / sppo.loss_unit, rel=1e-6)
    high, low = (0.5 + sigma(1)) / 2, (0.5 + sigma(0.1)) / 2
    for q in (10, 50, 90):
        assert metrics[f"chosen_win_p{q}"] == pytest.approx(low + (high - low) * q / 100)
        assert metrics[f"rejected_win_p{q}"] == pytest.approx(1 - high + (high - low) * q / 100)
    histogram = metrics.pop("win_histogram")
    assert len(histogram) == 20 and sum(histogram) == 4, "one win rate an answer"
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in metrics.values())


def test_cycles_and_near_ties_are_shares(tmp_path: Path) -> None:
    """One prompt of two is rock, paper, scissors. Leads .05, 1 and .95: sigma(.05) = .5125; twins are no tie."""
    three, game = [[1], [2], [3]], matrix_of([[NAN, 1, -1], [-1, NAN, 1], [1, -1, NAN]])
    _, metrics = pair_up(tmp_path, [(three, game), (three, scalar([1.0, 2.0, 3.0]))])
    assert metrics["intransitive_triads"] == 0.5
    _, metrics = pair_up(tmp_path, [(three, scalar([1.0, 0.95, 0.0]))])
    assert metrics["near_ties"] == pytest.approx(1 / 3)
    _, metrics = pair_up(tmp_path, [([[1], [1], [3]], scalar([1.0, 1.0, 0.0]))])
    assert metrics["near_ties"] == 0


# In a run ----------------------------------------------------------------------------------------------------------
