"""Columns and tables at W&B: which numbers and answers they show, and how much of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_run import MadeUp, made_up, pair, ranking, responses
from omegaconf import OmegaConf
from tiny_run import PROMPTS, K, composed, typed

from src.experiment.point import Point
from src.kernel.rows import PAIRS, RANKING, RESPONSES, Row, write_rows
from src.launch.local import Local
from src.reporting import wandb_tables
from src.reporting.wandb import Off
from src.reporting.wandb_tables import CHARACTERS, HELD_OUT, TRAINING, config_of, cut, eta, samples_of, summary_of

LONG = "word " * CHARACTERS


def tables(story: MadeUp, name: str) -> dict[str, list[Row]]:
    node = next(node for node in story.nodes if node.name == name)
    return samples_of(node, story.nodes, story.store, story.run.estimator)


def overwrite(story: MadeUp, name: str, content: list[Row], schema: Any) -> None:
    node = next(node for node in story.nodes if node.name == name)
    write_rows(story.store.path(node), content, schema)


def test_a_prompt_is_shown_with_its_answers_who_beats_whom_and_its_pair(tmp_path: Path) -> None:
    story = made_up(tmp_path, question="what is it?")
    answered = [responses(i, "what is it?", "", K) for i in range(PROMPTS)]
    for row in answered:
        row["responses"] = [one | {"text": f"{row['prompt_id']} says {k}"} for k, one in enumerate(row["responses"])]
    overwrite(story, "it2/responses", answered, RESPONSES)
    found = tables(story, "it2/pairs")[TRAINING]
    assert [row["prompt_id"] for row in found] == [f"p{i}" for i in range(PROMPTS)]
    matrix = story.run.estimator.matrix(ranking(1))
    wins = matrix.mean(1)
    one = found[1]
    assert (one["iteration"], one["prompt"]) == (2, "what is it?")
    assert [one[f"answer {k + 1}"] for k in range(K)] == [f"p1 says {k}" for k in range(K)]
    assert [one[f"P(answer {k + 1} beats the policy)"] for k in range(K)] == pytest.approx(list(wins))
    assert np.array([line.split() for line in one["matrix"].splitlines()], dtype=float) == pytest.approx(
        matrix, abs=0.005
    )
    assert (one["chosen"], one["rejected"]) == ("p1 says 2", "p1 says 0")
    assert one["P(chosen beats the policy)"] == 0.75 and one["P(chosen beats rejected)"] == 0.9


def test_of_several_pairs_the_widest_is_shown_and_what_there_is_none_of_is_an_empty_cell(tmp_path: Path) -> None:
    """A prompt may have no pair, and an answer from outside may be missing."""
    story = made_up(tmp_path)
    wide = pair(0) | {"chosen_index": 1, "chosen_win": 0.9}
    overwrite(story, "it1/pairs", [pair(0), wide, pair(0)], PAIRS)
    answered = [responses(0, "what", "this", K), responses(1, "what", "this", K - 1)]
    overwrite(story, "it1/responses", answered, RESPONSES)
    fewer = ranking(1) | {"scores": [0.0] * (K - 1), "truncated": [False] * (K - 1)}
    overwrite(story, "it1/ranking", [ranking(0), fewer], RANKING)
    found = tables(story, "it1/pairs")[TRAINING]
    assert [row["P(chosen beats the policy)"] for row in found] == [0.9, None]
    assert [row[f"answer {K}"] for row in found] == ["this", None]


def test_a_table_has_few_prompts_and_no_long_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_tables, "PROMPTS", 2)
    story = made_up(tmp_path, question=LONG, answer=LONG)
    for name, key in (("it1/pairs", TRAINING), ("it1/evaluation", HELD_OUT)):
        table = tables(story, name)[key]
        assert [row["prompt_id"] for row in table] == ["p0", "p1"]
        assert max(len(cell) for row in table for cell in row.values() if isinstance(cell, str)) < CHARACTERS + 40
    assert cut("x" * CHARACTERS) == "x" * CHARACTERS
    assert cut("x" * (CHARACTERS + 7)) == "x" * CHARACTERS + " … [7 more characters]"


def test_what_looks_like_a_secret_is_no_column() -> None:
    told = {"api_key": "abc", "hf_token": "abc", "x": {"Authorization": "abc"}, "max_tokens": 7, "token_budget": "all"}
    cfg = OmegaConf.create({**composed(), "x": {"extra_body": told}})
    point = Point(typed(), Local(), Off(), cfg, [])  # pyright: ignore
    found = {k.rpartition("extra_body.")[2]: v for k, v in config_of(point).items() if "extra_body" in k}
    assert found == {"max_tokens": 7, "token_budget": "all"}


def test_eta_is_one_over_beta_and_a_summary_has_the_best_iteration_and_the_last() -> None:
    for method in ("sppo", "sppo_single", "dpo", "ipo", "wpo", "wpo_clamped"):
        run = typed(f"method={method}")
        assert eta(run) == pytest.approx(1 / run.method.beta), method
    rows = [{"iteration": t, "evaluation/win_over_base": win} for t, win in enumerate([0.5, 0.7, 0.7, 0.6], 1)]
    assert summary_of(rows) == {"win_rate": 0.6, "best_win_rate": 0.7, "best_iteration": 2}
    assert summary_of(rows[:1]) == {"win_rate": 0.5, "best_win_rate": 0.5, "best_iteration": 1}
    assert summary_of([]) == {}
