"""Benchmarks in the W&B report and workspace of a comparison, only where there are any."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_up_sweep import grid, write
from test_compare_benchmarks import put

from src.compare.points import Comparison, compare_folders
from src.compare.wandb_panels import MOST_NUMBERS, benchmark, load_library, sections
from src.compare.wandb_report import shown, specs
from src.tracking.families import family_of
from src.tracking.metrics import metric_rows
from src.tracking.state import run_id


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    load_library()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two runs with IFEval, of which one has a leaderboard too."""
    folders = write(tmp_path_factory.mktemp("measured"), grid((100.0, 1000.0), (5e-7,), iterations=1))
    for folder in folders:
        put(folder, "it1/ifeval", [0.0, 1.0])
    put(folders[1], "it1/open_llm_v1", [0.0, 1.0], columns=("arc", "mmlu"))
    return compare_folders(folders, "measured")


def test_benchmarks_of_the_runs_are_shown_from_w_and_b_runs_of_their_own(measured: Comparison) -> None:
    """As their rows are called, and with the runs alone that have them."""
    named = {section.name: section for section in sections(["eta"], shown(measured).benchmarks)}
    lines = named["Benchmark: ifeval"].panels
    node: Any = SimpleNamespace(name="it1/ifeval/scores", stage=SimpleNamespace(kind="scores"), key="k")
    place = measured.runs[0].path / "artifacts" / node.name
    (row,) = metric_rows(node, place)
    assert [panel.y for panel in lines] == [[f"ifeval/prompt_strict{end}" for end in ("", "_low", "_high")]]  # pyright: ignore
    assert {panel.x for panel in lines} == {"iteration"}  # pyright: ignore
    assert {"iteration", *lines[0].y} <= row.keys()  # pyright: ignore
    assert family_of(node.name) == named["Benchmark: ifeval"].family == "ifeval"
    ids, (first, second) = shown(measured).ids, [run.path for run in measured.runs]
    assert ids["ifeval"] == [run_id(first, "ifeval"), run_id(second, "ifeval")]
    assert ids["open_llm_v1"] == [run_id(second, "open_llm_v1")]


def test_the_library_reads_a_report_with_benchmarks_back(measured: Comparison, tmp_path: Path) -> None:
    """`specs` reads back what it gives; without benchmarks there is no word of them."""
    texts, plain = specs(measured), specs(compare_folders(write(tmp_path, grid((100.0,), (5e-7,))), "none"))
    assert all('"ifeval/prompt_strict_low"' in text and "Benchmark: open_llm_v1" in text for text in texts.values())
    assert run_id(measured.runs[1].path, "open_llm_v1") in texts["report"]
    grids = [block for block in json.loads(texts["report"])["spec"]["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == 9 and not any("Benchmark" in text for text in plain.values())


def test_of_a_benchmark_of_many_numbers_the_first_are_shown_and_the_rest_counted() -> None:
    section = benchmark("mine", [[f"n{i}"] for i in range(MOST_NUMBERS + 1)])
    assert len(section.panels) == MOST_NUMBERS and "first 12 of 13 numbers" in section.about
