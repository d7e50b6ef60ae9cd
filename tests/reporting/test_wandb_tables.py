"""Columns, tables and reports at W&B: which numbers, answers and runs they show, and how much of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_run import MadeUp, made_up, pair, ranking, responses
from made_up_sweep import grid, put, write
from omegaconf import OmegaConf
from tiny_run import PROMPTS, K, composed, made_point, typed

from src.kernel.rows import PAIRS, RANKING, RESPONSES, Row, write_rows
from src.methods.method import PairLogps
from src.reporting import wandb_tables
from src.reporting.compare.points import compare_folders
from src.reporting.compare.wandb_report import LINES, SUMMARY, TABLES, report
from src.reporting.metrics_file import rows_of
from src.reporting.wandb import experiment_of, run_id
from src.reporting.wandb_tables import CHARACTERS, HELD_OUT, TRAINING, config_of, eta, family_of, samples_of, summary_of
from src.training.metrics import StepMetrics


def table(story: MadeUp, name: str, key: str) -> list[Row]:
    return samples_of(story.node(name), story.nodes, story.store, story.run.estimator)[key]


def test_answers_are_shown_with_how_often_they_win_and_the_widest_pair_that_they_gave(tmp_path: Path) -> None:
    """A prompt may have no pair, and an answer from outside may be missing."""
    story = made_up(tmp_path, question="what is it?")
    answered = [responses(i, "what is it?", "", K - (i == 1)) for i in range(PROMPTS)]
    for row in answered:
        row["responses"] = [one | {"text": f"{row['prompt_id']} says {k}"} for k, one in enumerate(row["responses"])]
    fewer = ranking(1) | {"scores": [0.0] * (K - 1), "truncated": [False] * (K - 1)}
    write_rows(story.path("it2/responses"), answered, RESPONSES)
    write_rows(story.path("it2/pairs"), [pair(0), pair(0) | {"chosen_index": 1, "chosen_win": 0.9}, pair(0)], PAIRS)
    write_rows(story.path("it2/ranking"), [ranking(0), fewer, *map(ranking, range(2, PROMPTS))], RANKING)
    rows = table(story, "it2/pairs", TRAINING)
    assert len(rows) == PROMPTS * K - 1
    assert {(row["iteration"], row["prompt"]) for row in rows} == {(2, "what is it?")}
    answers = [(f"p{i} says {k}", side) for i, sides in enumerate((["rejected", "chosen", ""], ["", ""]))
               for k, side in enumerate(sides)]  # fmt: skip
    assert [(row["answer"], row["pair"]) for row in rows[: 2 * K - 1]] == answers
    wins = story.run.estimator.matrix(ranking(0)).mean(1).tolist()
    assert [row["P(it beats the policy)"] for row in rows[:K]] == pytest.approx(wins)


def test_a_table_has_few_prompts_and_no_long_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_tables, "PROMPTS", 2)
    long = "word " * CHARACTERS
    story = made_up(tmp_path, question=long, answer=long)
    for name, key, count in (("it1/pairs", TRAINING, 2 * K), ("it1/evaluation", HELD_OUT, 2)):
        rows = table(story, name, key)
        assert len(rows) == count
        assert max(len(cell) for row in rows for cell in row.values() if isinstance(cell, str)) == CHARACTERS


def test_what_looks_like_a_secret_is_no_column() -> None:
    body = {"api_key": "abc", "hf_token": "abc", "x": {"Authorization": "abc"}, "max_tokens": 7, "token_budget": "all"}
    cfg = OmegaConf.create({**composed(), "x": {"extra_body": body, "list": [{"password": "abc"}]}})
    columns = config_of(dataclasses.replace(made_point(typed()), cfg=cfg))
    assert {key: value for key, value in columns.items() if key.startswith("x.")} == {
        "x.extra_body.max_tokens": 7, "x.extra_body.token_budget": "all"
    }  # fmt: skip


def test_eta_is_one_over_beta_and_a_summary_has_the_last_iteration_and_the_best() -> None:
    for method in ("sppo", "sppo_single", "dpo", "ipo", "wpo"):
        run = typed(f"method={method}")
        assert eta(run) == pytest.approx(1 / run.method.beta), method
    rows = [{"iteration": t, "evaluation/win_over_base": win} for t, win in enumerate([0.5, 0.7, 0.7, 0.6], 1)]
    assert summary_of(rows) == {"win_rate": 0.6, "best_win_rate": 0.7} and summary_of([]) == {}


# The report of a comparison -------------------------------------------------------------------------------------------


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
    assert set(SUMMARY) <= set(summary_of(rows))
    assert set(TABLES.values()) == {TRAINING, HELD_OUT}


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
