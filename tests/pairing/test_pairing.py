"""The stage that makes pairs: its rows, its filters, and what it counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_pairs import pair_up
from made_up_rankings import scalar, sigma

from src.kernel.config import UserError
from src.methods.sppo import SPPO
from src.pairing.rules import AllAnswers, WPOv1
from src.training.metrics import expected_first_loss


def test_the_best_is_chosen_the_worst_rejected_with_their_probabilities(tmp_path: Path) -> None:
    """Scores 0, 2, 1: wins (1/2 + s(-2) + s(-1)) / 3, (1/2 + s(2) + s(1)) / 3, 1/2."""
    (pair,), metrics = pair_up(tmp_path, [([[1], [2, 2], [3]], scalar([0.0, 2.0, 1.0]))])
    assert (pair["chosen_token_ids"], pair["rejected_token_ids"], pair["prompt_token_ids"]) == ([2, 2], [1], [7])
    assert (pair["chosen_index"], pair["rejected_index"]) == (1, 0)
    assert (pair["chosen_source"], pair["rejected_source"]) == ("from [2, 2]", "from [1]")
    best, worst = (0.5 + sigma(2) + sigma(1)) / 3, (0.5 + sigma(-2) + sigma(-1)) / 3
    assert (pair["chosen_win"], pair["rejected_win"]) == pytest.approx((best, worst))
    assert pair["chosen_beats_rejected"] == pytest.approx(sigma(2))
    assert metrics["win_margin"] == pytest.approx(best - worst)
    assert metrics["expected_loss_unit"] == pytest.approx(((best - 0.5) ** 2 + (worst - 0.5) ** 2) / 2)
    sppo = SPPO(name="sppo", eta=30.0, center=0.5)
    assert metrics["expected_loss_unit"] == pytest.approx(expected_first_loss(sppo, [pair]) / sppo.loss_unit, rel=1e-6)
    assert (metrics["chosen_tokens"], metrics["rejected_tokens"]) == (2, 1)


def test_a_rule_may_make_many_pairs_of_a_prompt_or_none(tmp_path: Path) -> None:
    """Of three answers the ring is best-middle, middle-worst, best-worst; rows stay in the order of the prompts."""
    prompt = ([[1], [2], [3]], scalar([0.0, 2.0, 1.0]))
    pairs, metrics = pair_up(tmp_path / "all", [prompt, prompt, ([[1]], scalar([1.0]))], rule=AllAnswers())
    places = [(pair["prompt_id"], pair["chosen_index"], pair["rejected_index"]) for pair in pairs]
    assert places == [(p, *indices) for p in ("p0", "p1") for indices in ((1, 2), (2, 0), (1, 0))]
    assert (metrics["prompts"], metrics["pairs"], metrics["prompts_without_pair"]) == (3, 6, 1)
    with pytest.raises(UserError, match="^pairs: no pair is left: .*chosen_from=5.0"):
        pair_up(tmp_path / "v1", [prompt], rule=WPOv1(chosen_from=5.0, gap=1.0))


SAME, OTHER = ([[1, 2], [1, 2]], scalar([1.0, 0.0])), ([[1], [2]], scalar([0.0, 1.0]))
LONG, CLOSE = ([[1], [2] * 9], scalar([0.0, 1.0])), ([[1], [2]], scalar([0.0, 0.1]))


def test_a_pair_is_left_out_for_one_reason_and_counted_under_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SAME also has no margin; LONG differs by 8 tokens; CLOSE by (s(.1) - s(-.1)) / 2 = .025; OTHER by .23."""
    pairs, metrics = pair_up(tmp_path / "a", [SAME, LONG, CLOSE, OTHER, LONG], min_margin=0.2, max_length_gap=7)
    assert [pair["prompt_id"] for pair in pairs] == ["p3"]
    assert [metrics[f"{reason}_left_out"] for reason in ("identical", "margin", "length")] == [1, 1, 2]
    assert (metrics["prompts"], metrics["pairs"], metrics["prompts_without_pair"]) == (5, 1, 4)
    assert "prompts without a pair: 4 of 5" in capsys.readouterr().out
    pairs, _ = pair_up(tmp_path / "b", [SAME, OTHER], drop_identical=False)
    assert len(pairs) == 2
    sure = ([[1], [2] * 9], scalar([-1e6, 1e6]))  # 3/4 and 1/4
    pairs, _ = pair_up(tmp_path / "c", [sure], min_margin=0.5, max_length_gap=8)
    assert len(pairs) == 1, "a pair at the limit is kept"
    with pytest.raises(UserError, match="1 identical; .*2 nearer than pairing.filters.min_margin"):
        pair_up(tmp_path / "d", [SAME, CLOSE, CLOSE], min_margin=0.2)


def test_quantiles_histogram_and_near_ties(tmp_path: Path) -> None:
    """P(chosen) of OTHER, CLOSE: (1/2 + s(1)) / 2, (1/2 + s(.1)) / 2; their quantiles lie on the line between.

    A near tie has a lead of at most .1: sigma(.05) = .5125 is one. Two answers of the same text are none.
    """
    _, metrics = pair_up(tmp_path / "a", [OTHER, CLOSE])
    high, low = (0.5 + sigma(1)) / 2, (0.5 + sigma(0.1)) / 2
    for q in (10, 50, 90):
        assert metrics[f"chosen_win_p{q}"] == pytest.approx(low + (high - low) * q / 100)
        assert metrics[f"rejected_win_p{q}"] == pytest.approx(1 - high + (high - low) * q / 100)
    assert len(metrics["win_histogram"]) == 20 and sum(metrics["win_histogram"]) == 4, "one win rate for each answer"
    three = ([[1], [2], [3]], scalar([1.0, 0.95, 0.0])), ([[1], [1], [3]], scalar([1.0, 1.0, 0.0]))
    _, metrics = pair_up(tmp_path / "b", list(three))
    assert metrics["near_ties"] == 1 / (3 + 2)
