"""The stage that makes pairs: its rows, its filters, and what it counts."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from made_up_rankings import NAN, matrix_of, rankings, scalar, sigma
from tiny_run import PROMPTS, K, World, tiny, typed

from src import records
from src.config import UserError
from src.methods.sppo import SPPO
from src.pairing.filters import Filters
from src.pairing.rules import AllAnswers, BestWorst, WPOv1
from src.pairing.stage import Pair
from src.records import Row
from src.training.metrics import expected_first_loss

PAIRWISE = typed("estimator=pairwise").estimator
EVERYTHING = Filters(drop_identical=False, min_margin=None, max_length_gap=None)


def stage(**changes: Any) -> Pair:
    """Best against worst, identical ones left out; `changes` are fields of the stage or of its filters."""
    filters = {name: changes.pop(name) for name in list(changes) if name in vars(EVERYTHING)}
    given = Filters(**(vars(EVERYTHING) | {"drop_identical": True} | filters))
    return Pair(**({"rule": BestWorst(), "filters": given, "estimator": PAIRWISE, "seed": 0} | changes))


def answer(ids: list[int]) -> Row:
    return {"text": str(ids), "token_ids": ids, "finish_reason": "stop", "seed": 0, "source": f"from {ids}"}


def responses(prompt_id: str, answers: list[list[int]]) -> Row:
    prompt = {"prompt_id": prompt_id, "messages": [], "source": "", "checks": "[]", "prompt_token_ids": [7]}
    return prompt | {"responses": [answer(ids) for ids in answers]}


def pair_up(folder: Path, prompts: list[tuple[list[list[int]], Row]], **changes: Any) -> tuple[list[Row], Any]:
    """Run the stage on (answers, ranking) of each prompt; its rows and metrics."""
    rows = [responses(f"p{i}", answers) for i, (answers, _) in enumerate(prompts)]
    ranked = [
        ranking | {"prompt_id": f"p{i}", "truncated": [], "prompt_truncated": False, "terms": None}
        for i, (_, ranking) in enumerate(prompts)
    ]
    places = [folder / name for name in ("responses", "ranking", "out")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    records.write_rows(places[0], rows, records.RESPONSES)
    records.write_rows(places[1], reversed(ranked), records.RANKING)  # found by prompt, not by place
    stage(**changes)(places[0], places[1], out=places[2])
    return records.read_rows(places[2], records.PAIRS), json.loads((places[2] / "metrics.json").read_text())


# Rows --------------------------------------------------------------------------------------------------------------


def test_the_best_is_chosen_the_worst_rejected_with_their_probabilities(tmp_path: Path) -> None:
    """Scores 0, 2, 1: wins (1/2 + s(-2) + s(-1)) / 3, (1/2 + s(2) + s(1)) / 3, 1/2."""
    (pair,), metrics = pair_up(tmp_path, [([[1], [2, 2], [3]], scalar([0.0, 2.0, 1.0]))])
    assert (pair["chosen_token_ids"], pair["rejected_token_ids"], pair["prompt_token_ids"]) == ([2, 2], [1], [7])
    assert (pair["chosen_index"], pair["rejected_index"]) == (1, 0)
    assert (pair["chosen_source"], pair["rejected_source"]) == ("from [2, 2]", "from [1]")
    best, worst = (0.5 + sigma(2) + sigma(1)) / 3, (0.5 + sigma(-2) + sigma(-1)) / 3
    assert pair["chosen_win"] == pytest.approx(best)
    assert pair["rejected_win"] == pytest.approx(worst)
    assert pair["chosen_beats_rejected"] == pytest.approx(sigma(2))
    assert metrics["chosen_win"] == pair["chosen_win"]
    assert metrics["win_margin"] == pytest.approx(best - worst)
    assert metrics["expected_loss_unit"] == pytest.approx(((best - 0.5) ** 2 + (worst - 0.5) ** 2) / 2)
    assert (metrics["prompts"], metrics["pairs"], metrics["prompts_without_pair"]) == (1, 1, 0)
    assert (metrics["chosen_tokens"], metrics["rejected_tokens"], metrics["intransitive_triads"]) == (2, 1, 0)


@pytest.mark.full
@given(ranking=rankings())
def test_the_chosen_win_rate_is_never_below_the_rejected(
    tmp_path_factory: pytest.TempPathFactory, ranking: Row
) -> None:
    k = len(ranking["scores"] or ranking["logits"])
    (pair,), _ = pair_up(tmp_path_factory.mktemp("p"), [([[i] for i in range(k)], ranking)])
    wins = PAIRWISE.win_rates(PAIRWISE.matrix(ranking))
    assert pair["chosen_win"] == pytest.approx(wins.max(), abs=1e-15)
    assert pair["rejected_win"] == pytest.approx(wins.min(), abs=1e-15)
    assert pair["chosen_index"] != pair["rejected_index"]


def test_a_rule_may_give_many_pairs_a_prompt_or_none(tmp_path: Path) -> None:
    """Of three answers the ring is best-middle, middle-worst, best-worst; rows stay in the order of the prompts."""
    prompt = ([[1], [2], [3]], scalar([0.0, 2.0, 1.0]))
    pairs, metrics = pair_up(tmp_path / "all", [prompt, prompt], rule=AllAnswers())
    found = [(pair["prompt_id"], pair["chosen_index"], pair["rejected_index"]) for pair in pairs]
    assert found == [(p, *indices) for p in ("p0", "p1") for indices in ((1, 2), (2, 0), (1, 0))]
    assert (metrics["prompts"], metrics["pairs"], metrics["prompts_without_pair"]) == (2, 6, 0)
    good = ([[1], [2], [3]], scalar([0.0, 5.0, 4.5]))
    pairs, metrics = pair_up(tmp_path / "v1", [prompt, good], rule=WPOv1(chosen_from=5.0, gap=1.0))
    assert [(pair["prompt_id"], pair["chosen_index"], pair["rejected_index"]) for pair in pairs] == [("p1", 1, 0)]
    assert (metrics["prompts"], metrics["pairs"], metrics["prompts_without_pair"]) == (2, 1, 1)


def test_pairs_have_the_probabilities_of_the_estimator(tmp_path: Path) -> None:
    """Scores 0, 2, 1 halved by tau; of the two answers alone P^ = (1/2 + s(2 / 2)) / 2."""
    two = typed("estimator=two_answers", "estimator.tau=2").estimator
    (pair,), _ = pair_up(tmp_path, [([[1], [2], [3]], scalar([0.0, 2.0, 1.0]))], estimator=two)
    assert pair["chosen_win"] == pytest.approx((0.5 + sigma(1)) / 2)
    assert pair["rejected_win"] == pytest.approx((0.5 + sigma(-1)) / 2)


# Filters -----------------------------------------------------------------------------------------------------------

SAME, OTHER = ([[1, 2], [1, 2]], scalar([1.0, 0.0])), ([[1], [2]], scalar([0.0, 1.0]))
LONG, CLOSE = ([[1], [2] * 9], scalar([0.0, 1.0])), ([[1], [2]], scalar([0.0, 0.1]))


def test_identical_answers_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, metrics = pair_up(tmp_path, [SAME, OTHER, SAME])
    assert [p["prompt_id"] for p in pairs] == ["p1"]
    assert (metrics["prompts"], metrics["pairs"], metrics["identical_left_out"]) == (3, 1, 2)
    assert metrics["prompts_without_pair"] == 2
    assert capsys.readouterr().out == "pair: pairs left out: 2 identical; 2 of 3 prompts have no pair\n"
    assert metrics["chosen_win"] == pytest.approx((0.5 + sigma(1)) / 2)


def test_where_nothing_is_left_out_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, metrics = pair_up(tmp_path, [SAME, OTHER], drop_identical=False)
    assert (len(pairs), metrics["pairs"], metrics["identical_left_out"]) == (2, 2, 0)
    assert capsys.readouterr().out == ""


def test_a_pair_is_left_out_for_one_reason_and_counted_under_it(tmp_path: Path) -> None:
    """SAME also has no margin; LONG differs by 8 tokens; CLOSE by (s(.1) - s(-.1)) / 2 = .025; OTHER by .23."""
    limits = {"min_margin": 0.2, "max_length_gap": 7}
    pairs, metrics = pair_up(tmp_path, [SAME, LONG, CLOSE, OTHER, LONG], **limits)
    assert [p["prompt_id"] for p in pairs] == ["p3"]
    assert [metrics[f"{reason}_left_out"] for reason in ("identical", "margin", "length")] == [1, 1, 2]
    assert (metrics["prompts"], metrics["pairs"], metrics["prompts_without_pair"]) == (5, 1, 4)


def test_limits_themselves_are_kept(tmp_path: Path) -> None:
    margin = (sigma(1) + 0.5) / 2 - (sigma(-1) + 0.5) / 2
    pairs, _ = pair_up(tmp_path, [LONG], min_margin=margin - 1e-12, max_length_gap=8)
    assert len(pairs) == 1


@pytest.mark.parametrize(
    ("prompts", "changes", "said"),
    [
        ([SAME, SAME], {}, "pairs: none is left: 2 identical; raise sampling.temperature"),
        ([CLOSE], {"min_margin": 0.2}, "1 nearer than pairing.filters.min_margin; lower it"),
        ([LONG], {"max_length_gap": 7}, "1 of lengths further apart than pairing.filters.max_length_gap; raise it"),
        ([SAME, LONG], {"max_length_gap": 7}, "1 identical; raise sampling.temperature; 1 of lengths further"),
        (
            [OTHER, LONG],
            {"rule": WPOv1(chosen_from=5.0, gap=1.0)},
            "pairs: no answers to any of 2 prompts make a pair (pairing.rule.chosen_from 5.0, pairing.rule.gap 1.0)",
        ),
    ],
)
def test_where_no_pair_is_left_the_line_says_what_to_change(
    prompts: list[tuple[list[list[int]], Row]], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        pair_up(tmp_path, prompts, **changes)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


# Metrics -----------------------------------------------------------------------------------------------------------


def test_cycles_are_reported_as_a_share_of_all_triads(tmp_path: Path) -> None:
    """One prompt is rock, paper, scissors (1 of 1), one is not (0 of 1)."""
    game = matrix_of([[NAN, 1, -1], [-1, NAN, 1], [1, -1, NAN]])
    _, metrics = pair_up(tmp_path, [([[1], [2], [3]], game), ([[1], [2], [3]], scalar([1.0, 2.0, 3.0]))])
    assert metrics["intransitive_triads"] == 0.5


def test_the_expected_loss_is_the_one_training_announces(tmp_path: Path) -> None:
    pairs, metrics = pair_up(tmp_path, [OTHER, LONG, CLOSE])
    sppo = SPPO(name="sppo", eta=30.0, center=0.5)
    assert metrics["expected_loss_unit"] == pytest.approx(expected_first_loss(sppo, pairs) / sppo.loss_unit, rel=1e-6)


def test_quantiles_say_how_win_probabilities_are_spread(tmp_path: Path) -> None:
    """P(chosen) of OTHER, CLOSE: (1/2 + s(1)) / 2, (1/2 + s(.1)) / 2; their quantiles lie on the line between."""
    _, metrics = pair_up(tmp_path, [OTHER, CLOSE])
    high, low = (0.5 + sigma(1)) / 2, (0.5 + sigma(0.1)) / 2
    for q in (10, 50, 90):
        assert metrics[f"chosen_win_p{q}"] == pytest.approx(low + (high - low) * q / 100)
        assert metrics[f"rejected_win_p{q}"] == pytest.approx(1 - high + (high - low) * q / 100)


def test_every_number_can_go_into_the_metrics_of_a_run(tmp_path: Path) -> None:
    _, metrics = pair_up(tmp_path, [OTHER])
    histogram = metrics.pop("win_histogram")
    assert len(histogram) == 20 and sum(histogram) == len(OTHER[0]), "one win rate an answer"
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in metrics.values())


def test_near_ties_are_pairs_of_different_texts_close_to_a_half(tmp_path: Path) -> None:
    """Leads .05, 1 and .95: sigma(.05) = .5125 is one near tie of three. Twins are none."""
    _, metrics = pair_up(tmp_path / "a", [([[1], [2], [3]], scalar([1.0, 0.95, 0.0]))])
    assert metrics["near_ties"] == pytest.approx(1 / 3)
    _, metrics = pair_up(tmp_path / "b", [([[1], [1], [3]], scalar([1.0, 1.0, 0.0]))])
    assert metrics["near_ties"] == 0


def test_a_prompt_with_one_answer_makes_no_pair(tmp_path: Path) -> None:
    """K may differ between prompts."""
    pairs, metrics = pair_up(tmp_path, [([[1]], scalar([1.0])), OTHER])
    assert {pair["prompt_id"] for pair in pairs} == {"p1"} and metrics["prompts_without_pair"] == 1


# In a run ----------------------------------------------------------------------------------------------------------


def test_a_run_hands_its_rule_filters_estimator_and_seed_to_the_stage() -> None:
    words = ("pairing=best_random", "estimator=score", "estimator.tau=0.5", "estimator.include_self=false", "seed=3")
    run = typed(*words)
    (made,) = [node.stage for node in run.nodes() if node.name == "it1/pairs"]
    assert (run.estimator.kind, run.estimator.tau, run.estimator.include_self) == ("score", 0.5, False)
    assert made == Pair(rule=run.pairing.rule, filters=run.pairing.filters, estimator=run.estimator, seed=3)


@pytest.mark.parametrize(("rule", "per_prompt"), [("best_worst", 1), ("all", 5)])
def test_what_comes_after_is_planned_for_all_pairs(rule: str, per_prompt: int) -> None:
    """64 prompts, K = 5, one epoch."""
    nodes = {node.name: node for node in typed(f"pairing={rule}", "iter=1").nodes()}
    assert [nodes[f"it1/{name}"].rows for name in ("pairs", "reference")] == [64 * per_prompt] * 2
    assert [nodes[f"it1/{name}"].work for name in ("reference", "policy")] == [64 * per_prompt] * 2


@pytest.mark.full
def test_many_pairs_a_prompt_go_through_training_and_report(llama: Path, tmp_path: Path) -> None:
    """The ring of K = 3 answers: 3 pairs a prompt, two a step."""
    world = World(tmp_path, tiny(llama, tmp_path, "pairing=all"))
    assert world.run("iter=1") == 0
    pairs = records.read_rows(world.artifact("it1/reference"), records.REFERENCE)
    assert Counter(pair["prompt_id"] for pair in pairs) == {pair["prompt_id"]: K for pair in pairs}
    assert len(pairs) == PROMPTS * K
    assert len((world.artifact("it1/policy") / "metrics.jsonl").read_text().splitlines()) == PROMPTS * K / 2
    assert f"| 1 | {PROMPTS * K} | 0 / 0 / 0 | 0 |" in (world.folder / "report.md").read_text()
