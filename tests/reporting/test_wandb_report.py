"""The W&B report and workspace of a comparison: every metric is one that is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_run import made_up
from made_up_sweep import grid, write

from src.methods.method import PairLogps
from src.reporting import wandb_tables
from src.reporting.compare.points import Comparison, compare_folders
from src.reporting.compare.wandb_panels import SUMMARY, TABLES, load_library, sections
from src.reporting.compare.wandb_report import report, shown
from src.reporting.metrics_file import rows_of
from src.reporting.wandb_runs import FAMILIES, STEP, experiment_in, family_of, run_id
from src.training.metrics import StepMetrics

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    load_library()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folders = write(tmp_path_factory.mktemp("sweep"), grid((100.0, 1000.0), (5e-7, 1e-6)), sweep="eta_lr")
    return compare_folders(folders, "η and lr ⭐ of a sweep")


def lines() -> Iterator[tuple[str, Any]]:
    """Family -> a line plot of its section."""
    for section in sections(["eta", "lr"]):
        for panel in section.panels:
            if hasattr(panel, "y") and isinstance(panel.y, list):
                yield section.family, panel


def test_every_metric_of_a_panel_is_written_by_the_family_whose_runs_it_shows(tmp_path: Path) -> None:
    """Rows of `metrics.jsonl`, and what a training says of itself at each step."""
    story = made_up(tmp_path)
    rows = [row for _, row in rows_of(story.nodes, story.store)]
    one = PairLogps(*[torch.ones(1)] * len(PairLogps._fields))
    parts = StepMetrics(story.run.method)._parts(one, torch.ones(1))
    written = {name for row in rows for name in row} | {STEP} | {f"train/{name}" for name in (*parts, "learning_rate")}
    shown = [(family, name) for family, panel in lines() for name in panel.y]
    assert {name for _, name in shown} | {panel.x for _, panel in lines()} <= written and len(shown) > 15
    for family, name in shown:
        stage = name.partition("/")[0]
        assert family_of(f"it1/{'policy' if stage == 'train' else stage}") == family, name
    assert set(SUMMARY) <= set(wandb_tables.summary_of(rows))
    assert set(TABLES.values()) == {wandb_tables.TRAINING, wandb_tables.HELD_OUT}
    assert (family_of("it1/pairs"), family_of("it1/evaluation")) == tuple(TABLES)


def test_the_runs_are_those_that_the_mirror_has_and_a_project_may_be_a_number(tmp_path: Path) -> None:
    """Also of a run folder that has no links."""
    folders = write(tmp_path, grid((100.0, 300.0), (5e-7,)), sweep="eta")
    settings = json.loads((folders[0] / "config.yaml").read_text())
    (folders[0] / "config.yaml").write_text(json.dumps(settings | {"tracking": {"project": 2024, "entity": 7}}))
    shutil.rmtree(folders[1] / "artifacts")
    of = shown(compare_folders(folders, "two"))
    assert of.ids == {f: [run_id(folder, f, experiment_in(folder)) for folder in folders] for f in FAMILIES}
    assert (of.entity, of.project) == ("7", "2024") and report(of)
