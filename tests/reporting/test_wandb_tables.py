"""Columns and tables at W&B: which numbers and answers they show, and how much of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from made_up_run import MadeUp, made_up, pair, ranking, responses
from omegaconf import OmegaConf
from tiny_run import PROMPTS, K, composed, made_point, typed

from src.kernel.rows import PAIRS, RANKING, RESPONSES, Row, write_rows
from src.reporting import wandb_tables
from src.reporting.wandb_tables import CHARACTERS, HELD_OUT, TRAINING, config_of, eta, samples_of, summary_of


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
