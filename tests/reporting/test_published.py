"""Published numbers: pages, reports and cards draw on one file, and nothing of another kind stands beside them."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from places import SHARED
from tiny_run import ROOT, typed

from src.evaluation.benchmark import Measure
from src.evaluation.results import Result
from src.reporting.published import (
    NOT_COMPARABLE,
    NOT_MEASURED,
    is_stand_in,
    measured_tables,
    others,
    published,
    published_tables,
)
from tools.published_page import page

DATA = SHARED / "alpaca_eval2" / "leaderboard"
PAGE = ROOT / "docs" / "published.md"


MEASURES = (Measure("lc", "LC win rate"), Measure("wr", "win rate"), Measure("length", "characters", 0))


def result(policy: str, best_of: int | None = None, stand_in: bool = False) -> Result:
    """Return made-up numbers of a benchmark that stands in for the real one."""
    benchmark: Any = SimpleNamespace(title="AlpacaEval 2", measures=MEASURES, best_of=best_of)
    numbers = {"lc": 12.345, "lc_low": 11.0, "lc_high": 13.0, "wr": 10.0, "items": 805}
    return Result("alpaca_eval", benchmark, policy, numbers, stand_in)


@pytest.fixture(autouse=True)
def as_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the benchmark are the published ones."""
    monkeypatch.setattr("src.evaluation.results.departs", lambda benchmark, numbers: None)


def test_the_page_of_published_numbers_is_up_to_date_golden() -> None:
    if os.environ.get("GOLDEN"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page()


@pytest.mark.full
@pytest.mark.skipif(not DATA.exists(), reason="needs the public leaderboard beside the checkout")
def test_leaderboard_values_are_those_of_the_leaderboard() -> None:
    rows = pd.read_csv(DATA / "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv", index_col=0)
    names = {
        "mistral_7b_pairrm_sppo": "SPPO-Mistral7B-PairRM",
        "gemma2_9b_it_sppo": "SPPO-Gemma-2-9B-It-PairRM",
        "llama3_8b_instruct_sppo": "SPPO-Llama-3-Instruct-8B-PairRM",
        "gemma2_9b_it_wpo_hb": "gemma-2-9b-it-WPO-HB",
        "llama3_8b_instruct_wpo_hb_v2": "Llama-3-Instruct-8B-WPO-HB-v2",
    }
    known = {name: one.tables for name, one in (published() | others()).items()}
    assert {name for name, tables in known.items() if any(t.source == "alpaca_eval" for t in tables)} == set(names)
    for experiment, name in names.items():
        (table,) = [t for t in known[experiment] if t.source == "alpaca_eval"]
        (values,) = table.policies.values()
        listed = rows.loc[name, ["length_controlled_winrate", "win_rate", "avg_length"]]
        assert values == pytest.approx(listed.tolist(), abs=0.0051), experiment


def test_a_measured_cell_stands_beside_the_published_ones_and_others_say_not_measured() -> None:
    """The first three tables are of one answer, the fourth is of the best of 16."""
    known, ours = published()["mistral_7b_pairrm_sppo"], "| **here, iteration 3** | 12.35 | 10.00 | not measured |"
    lines = [line for line in published_tables(known, [result("it3")], ["it2", "it3"]).splitlines() if "**here" in line]
    assert lines[1] == lines[3] == lines[5] == ours and lines[7].count(NOT_MEASURED) == 3
    assert all(line.count(NOT_MEASURED) == 3 for line in lines[0:8:2])
    assert published_tables(known, [result("it3", best_of=16)], ["it3"]).count(ours) == 1
    stand_in = published_tables(known, [result("it3", stand_in=True)], ["it2", "it3"])
    assert "12.35" not in stand_in and stand_in.count(NOT_COMPARABLE) == 9, "in three tables of three measures"


def test_another_start_policy_is_a_stand_in_whatever_its_config_calls_it() -> None:
    """A small model, another published one, a checkpoint under the published one's id; not a copy on this machine."""
    for words, stand_in in {
        (): False,
        ("model.repo=/models/Mistral-7B-Instruct-v0.2",): False,
        ("mirror=models/",): False,
        ("model.repo=me/Mistral-7B-Instruct-v0.2",): True,
        ("model=smollm2_135m_instruct", "model.id=mistralai/Mistral-7B-Instruct-v0.2"): True,
        ("model=gemma2_9b_it",): True,
        ("model.repo=/models/mine",): True,
    }.items():
        assert is_stand_in(typed("experiment=mistral_7b_pairrm_sppo", *words)) == stand_in, words
    assert not is_stand_in(typed()) and is_stand_in(typed("model=gemma2_9b_it", "model.repo=me/other"))


def test_what_departs_for_some_policies_alone_is_said_of_those() -> None:
    some = measured_tables([result("base"), result("it1", stand_in=True), result("it2", stand_in=True)])
    assert "numbers: another model than published (iteration 1, iteration 2) (`benchmark" in some
    every = measured_tables([result("it1", stand_in=True)])
    assert "numbers: another model than published (`benchmark" in every
