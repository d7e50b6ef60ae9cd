"""Published numbers: sources are named, and pages, reports and cards draw on one file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from tiny_run import ROOT, typed

from src.card.markdown import literal
from src.evaluation.plan import Measure, part_of
from src.evaluation.results import Result
from src.published import UNKNOWN, Published, Source, Table, cited, others, published, source_of
from src.report.benchmarks import (
    NOT_COMPARABLE,
    NOT_MEASURED,
    benchmarks,
    measured_tables,
    published_rows,
    published_tables,
)
from src.report.published_page import page

DATA = Path(__file__).parents[3] / "shared" / "data" / "alpaca_eval2" / "leaderboard"
PAGE = ROOT / "docs" / "published.md"


class Made:
    """A benchmark whose numbers are made up."""

    title = "AlpacaEval 2"
    measures = (Measure("lc", "LC win rate"), Measure("wr", "win rate"), Measure("length", "characters", 0))
    first: int | None = None
    best_of: int | None = None

    def departs(self, policy: str) -> str | None:
        return part_of(self.first)


def result(policy: str, best_of: int | None = None, first: int | None = None) -> Result:
    made = Made()
    made.best_of, made.first = best_of, first
    numbers = {"lc": 12.345, "lc_low": 11.0, "lc_high": 13.0, "wr": 10.0, "items": 805}
    return Result("alpaca_eval", made, policy, numbers, Path("nowhere"))  # pyright: ignore


def tables() -> list[Table]:
    return [table for known in (*published().values(), *others().values()) for table in known.tables]


def test_the_page_of_published_numbers_is_up_to_date_golden() -> None:
    if os.environ.get("GOLDEN"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page()


def test_every_table_names_its_source_and_its_date_or_that_it_is_unknown() -> None:
    for table in tables():
        source = source_of(table)
        told = source.date if re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", source.date) else "date unknown"
        assert cited(table).startswith(f"{source.kind}, {source.cite}, {told}")
    undated = {source_of(table).cite for table in tables() if source_of(table).date == UNKNOWN}
    assert not any("arXiv" in cite for cite in undated)
    assert undated and all(f"{literal(cite)}, date unknown" in page() for cite in undated)


@pytest.mark.parametrize("date", [None, "", "2024", "July 2024"])
def test_a_source_without_a_date_is_refused(date: str | None) -> None:
    with pytest.raises(ValidationError, match="date"):
        TypeAdapter(Source).validate_python({"kind": "card", "cite": "c", "date": date})


def test_a_table_with_an_unknown_source_or_a_value_too_few_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs 2 values"):
        TypeAdapter(Table).validate_python(
            {"benchmark": "b", "source": "s", "measures": ["a", "b"], "policies": {1: [2.0]}}
        )


@pytest.mark.skipif(not DATA.exists(), reason="needs the public leaderboard beside the checkout")
def test_leaderboard_values_are_those_of_the_leaderboard() -> None:
    import csv

    with (DATA / "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv").open() as file:
        rows = {row[""]: row for row in csv.DictReader(file)}
    names = {
        "mistral_7b_pairrm_sppo": "SPPO-Mistral7B-PairRM",
        "gemma2_9b_it_sppo": "SPPO-Gemma-2-9B-It-PairRM",
        "llama3_8b_instruct_sppo": "SPPO-Llama-3-Instruct-8B-PairRM",
        "gemma2_9b_it_wpo_hb": "gemma-2-9b-it-WPO-HB",
        "llama3_8b_instruct_wpo_hb_v2": "Llama-3-Instruct-8B-WPO-HB-v2",
    }
    known = {name: one.tables for name, one in (published() | others()).items()}
    assert {name for name, found in known.items() if any(t.source == "alpaca_eval" for t in found)} == set(names)
    for experiment, name in names.items():
        (table,) = [t for t in known[experiment] if t.source == "alpaca_eval"]
        (values,) = table.policies.values()
        found = [float(rows[name][key]) for key in ("length_controlled_winrate", "win_rate", "avg_length")]
        assert values == pytest.approx(found, abs=0.0051), experiment


def test_a_measured_cell_stands_beside_the_published_ones_and_others_say_not_measured() -> None:
    known = published()["mistral_7b_pairrm_sppo"]
    shown = published_tables(known, [result("it3")], ["it2", "it3"])
    lines = [line for line in shown.splitlines() if line.startswith("| **here")]
    plain_table, leaderboard, best = lines[:2], lines[2:4], lines[4:6]
    assert plain_table[1] == "| **here, iteration 3** | 12.35 | 10.00 | not measured |"
    assert leaderboard[1] == plain_table[1]
    assert plain_table[0].count(NOT_MEASURED) == best[1].count(NOT_MEASURED) == 3, "best of 16 is another number"
    reranked = published_tables(known, [result("it3", best_of=16)], ["it3"])
    assert "| **here, iteration 3** | 12.35 | 10.00 | not measured |" in reranked
    part = published_tables(known, [result("it3", first=5)], ["it2", "it3"])
    assert "12.35" not in part and part.count(NOT_COMPARABLE) == 6, "a part is no such number, in two tables"
    assert f"| **here, iteration 2** | {NOT_MEASURED} |" in part, "nor is it another policy's"


def test_what_departs_for_some_policies_alone_is_said_of_those() -> None:
    some = measured_tables([result("base"), result("it1", first=5), result("it2", first=5)])
    assert "numbers: the first 5 items only (iteration 1, iteration 2) (`benchmark" in some
    assert "numbers: the first 5 items only (`benchmark" in measured_tables([result("it1", first=5)])


def test_published_numbers_have_as_many_digits_as_were_published() -> None:
    policies = {"base": [12.6, None], 1: [23.0, 1899]}
    one = TypeAdapter(Table).validate_python(
        {"benchmark": "b", "source": "wpo", "measures": ["a", "n"], "policies": policies}
    )
    assert published_rows(one) == [("start policy", "12.6", "–"), ("iteration 1", "23.0", "1899")]
    (leaderboard,) = [t for t in published()["gemma2_9b_it_sppo"].tables if "MATH lvl 5" in t.measures]
    assert published_rows(leaderboard) == [
        ("iteration 2", "31.00", "42.17", "0.00", "11.30", "10.94", "31.89", "21.22")
    ]


@pytest.mark.full
def test_a_report_of_an_experiment_draws_published_numbers_and_any_other_does_not(tmp_path: Path) -> None:
    run = typed("experiment=mistral_7b_pairrm_sppo", "iter=2")
    parts = "\n".join(benchmarks(run, [result("it2")], tmp_path / "plots"))
    assert "12.35 [11.00, 13.00]" in parts and "Published beside ours" in parts
    assert "95% intervals over the items" in parts
    first = (tmp_path / "plots" / "published.png").read_bytes()
    benchmarks(run, [result("it2")], tmp_path / "again")
    assert (tmp_path / "again" / "published.png").read_bytes() == first, "same bytes again"
    assert benchmarks(typed("iter=1"), [], tmp_path / "none") == [] and not (tmp_path / "none").exists()


def drawn(tables: list[Table], found: list[Result]) -> list[Any]:
    """The lines of a panel of LC win rates."""
    from matplotlib.figure import Figure

    from src.report.published_plot import _panel

    axes = Figure().subplots()
    _panel(axes, "AlpacaEval 2", "LC win rate", tables, found, 3)
    return list(axes.get_lines())


def test_of_many_tables_each_has_a_line_of_its_own_look() -> None:
    known = [Table("AlpacaEval 2", "wpo", ["LC win rate"], {1: [float(i)]}) for i in range(5)]
    lines = drawn(known, [])
    assert [line.get_ydata()[0] for line in lines] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 5


def test_no_line_is_drawn_over_an_iteration_without_a_value() -> None:
    known = [Table("AlpacaEval 2", "wpo", ["LC win rate"], {"base": [17.0], 3: [26.0]})]
    theirs, ours = drawn(known, [result("base"), result("it1"), result("it3")])
    assert np.isnan(theirs.get_ydata()).tolist() == [False, True, True, False]
    assert np.isnan(ours.get_ydata()).tolist() == [False, False, True, False]


@pytest.mark.full
def test_every_measure_has_a_panel_however_many_there_are(tmp_path: Path) -> None:
    """Five, which make three beside each other and two below."""
    from PIL import Image

    from src.report.published_plot import draw_published

    known = Published("x", [Table(f"b{i}", "wpo", ["win rate"], {1: [float(i)]}) for i in range(5)])
    sizes = []
    for count in (1, 5):
        assert draw_published(Published("x", known.tables[:count]), [], 1, tmp_path / "p.png")
        with Image.open(tmp_path / "p.png") as picture:
            sizes.append(picture.size)
    assert sizes[1][0] > 2.5 * sizes[0][0] and sizes[1][1] > 1.7 * sizes[0][1]


@pytest.mark.parametrize("first", [None, 5])
def test_a_best_of_that_is_not_comparable_is_told_of_a_panel_whose_first_table_has_none(first: int | None) -> None:
    from matplotlib.figure import Figure

    from src.report.published_plot import _panel

    known = [Table("AlpacaEval 2", "wpo", ["LC win rate"], {1: [1.0]}, best_of) for best_of in (None, 16)]
    axes = Figure().subplots()
    _panel(axes, "AlpacaEval 2", "LC win rate", known, [result("it1", best_of=16, first=first)], 1)
    assert [text.get_text() for text in axes.texts] == ([f"here: {NOT_COMPARABLE}"] if first else [])


def test_ours_under_published_numbers_has_the_digits_of_its_measure() -> None:
    one = result("it3")
    one.numbers["length"] = 30.4
    shown = published_tables(published()["mistral_7b_pairrm_sppo"], [one], ["it3"])
    assert "| **here, iteration 3** | 12.35 | 10.00 | 30 |" in shown


def test_nothing_published_is_no_picture(tmp_path: Path) -> None:
    from src.report.published_plot import draw_published

    assert not draw_published(Published(system="x", tables=[]), [], 3, tmp_path / "p.png")
