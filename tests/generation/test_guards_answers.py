"""Numerical guards before training: answers that collapsed, and win probabilities that are none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_pairs import pair_up
from made_up_rankings import NAN, matrix_of, scalar
from made_up_run import made_up
from tiny_generation import CODE, engine, generated

from src.data.checks import SIGNS, collapse_warnings, signs
from src.kernel.config import Fault
from src.kernel.rows import ROWS, Row
from src.pairing.win_probability import fault_of, saturation_warnings
from src.reporting import report
from src.reporting.report import write_report


def answers(*texts: str, ids: list[int] | None = None) -> Row:
    return {"responses": [{"text": t, "token_ids": ids or [1, 2], "finish_reason": "stop"} for t in texts]}


def test_signs_are_shares_of_answers_and_of_prompts() -> None:
    """Nine answers to four prompts; the last prompt has a single one, which cannot be like others of its own."""
    rows = [answers("a", "a", "a"), answers("", " \n", "b"), answers("a", "b", ids=[7] * 9), answers("a")]
    assert signs(rows) == {"empty": 2 / 9, "looping": 2 / 9, "alike": 1 / 4, "commonest": 3 / 4}


def test_a_sign_is_told_with_its_counts_above_its_limit_and_not_at_it() -> None:
    """One of a few answers is no collapse."""
    quiet = {"answers": 1000, "prompts": 1000, "finished": 1.0} | dict.fromkeys(SIGNS, 0.0)
    for name, sign in SIGNS.items():
        for shift, lines in ((0, []), (0.001, [f"{round(1000 * sign.limit) + 1} of 1000 {sign.text}"])):
            share = sign.limit + shift
            assert collapse_warnings(quiet | ({"finished": 1 - share} if name == "cut" else {name: share})) == lines
    few = {"answers": 4, "prompts": 4, "finished": 1.0, "empty": 0.25, "looping": 0.25, "alike": 0.25}
    assert collapse_warnings(few) == [] and len(collapse_warnings(few | {"empty": 0.5})) == 1


def test_sampling_tells_collapse_and_spelt_marks(llama: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Greedy answers of one token are all alike."""
    monkeypatch.setattr("src.generation.stage.marks_as_text", lambda tokenizer: ["what is"])
    generated(engine(), llama, tmp_path, sampling=replace(CODE, temperature=0.0, max_new_tokens=1))
    assert "3 of 3 prompts have the same text" in (told := capsys.readouterr().out) and "prompts with a mark " in told


def test_probabilities_lie_in_their_range_and_add_up() -> None:
    fine = [(0.7, 0.3), (1.0, 0.0), (0.7, 0.3 + 1e-12)]
    faulty = [(NAN, NAN), (0.7, 0.4), (1.2, -0.2)]
    assert [fault_of(np.array([[0.5, p], [q, 0.5]])) for p, q in (*fine, *faulty)] == [None] * 3 + [(0, 1)] * 3
    assert fault_of(np.array([[0.4, 0.7], [0.3, 0.5]])) == (0, 0)


def test_a_ranking_without_a_probability_is_refused_by_prompt_and_answers(tmp_path: Path) -> None:
    """A missing logit is not taken for a tie."""
    fine, holed = matrix_of([[NAN, 1.0], [0.0, NAN]]), matrix_of([[NAN, NAN], [0.0, NAN]])
    with pytest.raises(Fault, match=r"ranking/rows.parquet: answers 1 and 2 to prompt p1 "):
        pair_up(tmp_path, [([[1], [2]], fine), ([[1], [2]], holed)])
    assert not list(tmp_path.rglob(f"pairs/{ROWS}"))


def test_saturated_probabilities_are_counted_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Leads 50, 40 and 10, and a tenth of them."""
    for number, (scale, count) in enumerate(((1, 2), (0.1, 0))):
        scores: Any = scalar([0.0, 50.0 * scale, 40.0 * scale])
        _, metrics = pair_up(tmp_path / str(number), [([[1], [2], [3]], scores)])
        assert metrics["saturated"] == count and len(saturation_warnings(metrics)) == bool(count)
        assert ("pair: warning: 2 pairs" in capsys.readouterr().out) == bool(count)


def test_a_ranker_that_tells_no_answers_apart_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two prompts of two answers; in the second case one of the two is no tie."""
    for number, (score, tied) in enumerate(((0.0, True), (1.0, False))):
        rows = [([[1], [2]], scalar([0.0, score])), ([[1], [2]], scalar([0.0, 0.0]))]
        _, metrics = pair_up(tmp_path / str(number), rows)
        assert len(saturation_warnings(metrics)) == tied
        assert ("pair: warning: 100% of the comparisons in 2 prompts" in capsys.readouterr().out) == tied


def test_a_report_warns_at_its_top_and_the_run_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "draw_all", lambda *_: None)
    story = made_up(tmp_path)
    (responses,) = (story.store.path(node) for node in story.nodes if node.name == "it2/responses")
    numbers = {"answers": 40, "prompts": 8, "finished": 0.05, "empty": 0.25, "looping": 0, "alike": 0, "commonest": 0}
    (responses / "metrics.json").write_text(json.dumps(numbers))
    write_report(story.run, story.nodes, story.store, story.folder)
    page, summary = ((story.folder / name).read_text() for name in ("report.md", "summary.txt"))
    for line in ("it2/responses: 10 of 40 answers ", "it2/responses: 38 of 40 answers "):
        assert f"warning: {line}" in summary
        assert f"* {line}" in page.partition("## Progress")[0].replace("\\", "")
