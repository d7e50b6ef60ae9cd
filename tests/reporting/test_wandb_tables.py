"""Columns and tables at W&B: which numbers and answers they show, and how much of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up_run import MadeUp, made_up, pair, ranking, responses
from omegaconf import OmegaConf
from tiny_run import PROMPTS, K, composed, typed

from src.experiment.point import Point
from src.kernel.rows import PAIRS, RANKING, RESPONSES, Row, write_rows
from src.launch.local import Local
from src.reporting import wandb_tables
from src.reporting.wandb import Off
from src.reporting.wandb_tables import CHARACTERS, HELD_OUT, TRAINING, config_of, eta, samples_of, summary_of


def table(story: MadeUp, name: str, key: str) -> list[Row]:
    node = next(node for node in story.nodes if node.name == name)
    return samples_of(node, story.nodes, story.store, story.run.estimator)[key]


def overwrite(story: MadeUp, name: str, content: list[Row], schema: Any) -> None:
    node = next(node for node in story.nodes if node.name == name)
    write_rows(story.store.path(node), content, schema)


def test_answers_are_shown_with_how_often_they_win_and_the_widest_pair_that_they_gave(tmp_path: Path) -> None:
    """A prompt may have no pair, and an answer from outside may be missing."""
    story = made_up(tmp_path, question="what is it?")
    answered = [responses(i, "what is it?", "", K - (i == 1)) for i in range(PROMPTS)]
    for row in answered:
        row["responses"] = [one | {"text": f"{row['prompt_id']} says {k}"} for k, one in enumerate(row["responses"])]
    overwrite(story, "it2/responses", answered, RESPONSES)
    overwrite(story, "it2/pairs", [pair(0), pair(0) | {"chosen_index": 1, "chosen_win": 0.9}, pair(0)], PAIRS)
    fewer = ranking(1) | {"scores": [0.0] * (K - 1), "truncated": [False] * (K - 1)}
    overwrite(story, "it2/ranking", [ranking(0), fewer, *map(ranking, range(2, PROMPTS))], RANKING)
    found = table(story, "it2/pairs", TRAINING)
    assert len(found) == PROMPTS * K - 1 and {(row["iteration"], row["prompt"]) for row in found} == {
        (2, "what is it?")
    }
    assert [row["answer"] for row in found[: 2 * K - 1]] == [f"p{i} says {k}" for i in (0, 1) for k in range(K - i)]
    assert [row["pair"] for row in found[: 2 * K - 1]] == ["rejected", "chosen", "", "", ""]
    assert [row["P(it beats the policy)"] for row in found[:K]] == pytest.approx(
        story.run.estimator.matrix(ranking(0)).mean(1).tolist()
    )


def test_a_table_has_few_prompts_and_no_long_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_tables, "PROMPTS", 2)
    long = "word " * CHARACTERS
    story = made_up(tmp_path, question=long, answer=long)
    for name, key, rows in (("it1/pairs", TRAINING, 2 * K), ("it1/evaluation", HELD_OUT, 2)):
        found = table(story, name, key)
        assert len(found) == rows
        assert max(len(cell) for row in found for cell in row.values() if isinstance(cell, str)) == CHARACTERS


def test_what_looks_like_a_secret_is_no_column() -> None:
    told = {"api_key": "abc", "hf_token": "abc", "x": {"Authorization": "abc"}, "max_tokens": 7, "token_budget": "all"}
    cfg = OmegaConf.create({**composed(), "x": {"extra_body": told, "list": [{"password": "abc"}]}})
    point = Point(typed(), Local(), Off(), cfg, [])  # pyright: ignore
    found = {key.removeprefix("x."): value for key, value in config_of(point).items() if key.startswith("x.")}
    assert found == {"extra_body.max_tokens": 7, "extra_body.token_budget": "all"}


def test_eta_is_one_over_beta_and_a_summary_has_the_last_iteration_and_the_best() -> None:
    for method in ("sppo", "sppo_single", "dpo", "ipo", "wpo"):
        run = typed(f"method={method}")
        assert eta(run) == pytest.approx(1 / run.method.beta), method
    rows = [{"iteration": t, "evaluation/win_over_base": win} for t, win in enumerate([0.5, 0.7, 0.7, 0.6], 1)]
    assert summary_of(rows) == {"win_rate": 0.6, "best_win_rate": 0.7} and summary_of([]) == {}
