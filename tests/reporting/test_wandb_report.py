"""The W&B report of a comparison: every metric is one that is written, and its runs are those that are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from made_up_run import made_up
from made_up_sweep import grid, put, write

from src.methods.method import PairLogps
from src.reporting import wandb_tables
from src.reporting.compare.points import compare_folders
from src.reporting.compare.wandb_report import LINES, SUMMARY, TABLES, report
from src.reporting.metrics_file import rows_of
from src.reporting.wandb import experiment_of, run_id
from src.reporting.wandb_tables import family_of
from src.training.metrics import StepMetrics


def test_every_metric_of_a_panel_is_written_by_the_family_whose_runs_it_shows(tmp_path: Path) -> None:
    """Rows of `metrics.jsonl`, and what a training says of itself at each step."""
    story = made_up(tmp_path)
    rows = [row for _, row in rows_of(story.nodes, story.store)]
    steps = StepMetrics(story.run.method)
    steps.add(PairLogps(*[torch.ones(1)] * len(PairLogps._fields)), torch.ones(1), torch.ones(1))
    written = {name for row in rows for name in row} | {f"train/{name}" for name in steps.sums}
    for family, panels in LINES.items():
        for name in " ".join(panels).split(" "):
            stage = name.partition("/")[0].replace("train", "policy")
            assert name in written and family_of(story.node(f"it1/{stage}")) == family, name
    assert set(SUMMARY) <= set(wandb_tables.summary_of(rows))
    assert set(TABLES.values()) == {wandb_tables.TRAINING, wandb_tables.HELD_OUT}


def test_a_report_is_of_the_compared_runs_and_of_the_project_that_is_named(tmp_path: Path) -> None:
    """The library itself reads back what it would send."""
    folders = write(tmp_path, grid((100.0, 1000.0), (5e-7, 1e-6)))
    put(folders[0], "it1/ifeval", [0.5, 0.25])
    comparison = compare_folders(folders, "η and lr ⭐ of a sweep")
    made: Any = report(comparison, "team/other")
    assert (made.entity, made.project, made.title) == ("team", "other", "η and lr ⭐ of a sweep")
    assert f"[compare {comparison.identity}]" in made.description
    model = made._to_model().model_dump_json(by_alias=True, exclude_none=True)
    type(made._to_model()).model_validate_json(model)
    for run in comparison.runs:
        experiment = experiment_of({name: one.key for name, one in run.artifacts.items()})
        assert all(run_id(run.path, family, experiment) in model for family in LINES)
    assert "ifeval/strict" in model and "Win rate by eta and lr" in model
