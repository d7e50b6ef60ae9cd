"""Numerical guards before training: answers that collapsed, scores and win probabilities that are none."""

from __future__ import annotations

import json
import math
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_run import made_up
from tiny_run import typed

from src.data.checks import SIGNS, collapse_warnings, signs
from src.kernel.cells import CELLS, Cells
from src.kernel.config import Fault, UserError
from src.kernel.rows import RANKING, RESPONSES, ROWS, Row, write_rows
from src.pairing.rules import BestWorst, Filters
from src.pairing.stage import Pair
from src.pairing.win_probability import Estimator, fault_of, lead, saturation_warnings
from src.ranking.batching import Item, Work, run_batches
from src.ranking.stage import checked
from src.reporting import report
from src.reporting.report import write_report

NAN = float("nan")

# Collapsed answers -------------------------------------------------------------------------------------------------


def answers(*texts: str, ids: list[int] | None = None, reason: str = "stop") -> Row:
    return {"responses": [{"text": t, "token_ids": ids or [1, 2], "finish_reason": reason} for t in texts]}


def test_signs_are_shares_of_answers_and_of_prompts() -> None:
    """Nine answers to four prompts; the last prompt has a single one, which cannot be like others of its own."""
    rows = [answers("a", "a", "a"), answers("", " \n", "b"), answers("a", "b", ids=[7] * 9), answers("a")]
    assert signs(rows) == {"empty": 2 / 9, "looping": 2 / 9, "alike": 1 / 4, "commonest": 3 / 4}


def test_a_sign_is_said_with_its_counts_above_its_limit_and_not_at_it() -> None:
    quiet = {"answers": 1000, "prompts": 1000, "finished": 1.0} | dict.fromkeys(SIGNS, 0.0)
    for name, sign in SIGNS.items():
        for shift, said in ((0, []), (0.001, [f"{round(1000 * sign.limit) + 1} of 1000 {sign.text}"])):
            share = sign.limit + shift
            assert collapse_warnings(quiet | ({"finished": 1 - share} if name == "cut" else {name: share})) == said
    few = {"answers": 4, "prompts": 4, "finished": 1.0, "empty": 0.25, "looping": 0.25, "alike": 0.25}
    assert collapse_warnings(few) == [] and collapse_warnings({"pairs": 3}) == [], (
        "one of a few is no collapse; older metrics say nothing"
    )
    assert len(collapse_warnings(few | {"empty": 0.5})) == 1


# Rankers -----------------------------------------------------------------------------------------------------------


class Scores:
    """The score of an item is its first token; that of 13 is none."""

    def __call__(self, items: list[Any]) -> list[float]:
        return [NAN if ids[0] == 13 else float(ids[0]) for (ids,) in items]


def test_a_score_that_is_none_is_named_by_what_was_scored(tmp_path: Path) -> None:
    items = [Item(name, (array("i", [n]),), f"prompt {name}") for name, n in (("p", 1), ("q", 13))]
    work = Work(device="cpu", attention="segments", batch_tokens=9, workers=1, save_seconds=9.0)
    with pytest.raises(UserError, match="^ranker: it gave NaN or infinity for prompt q; try ranker.precision=float32$"):
        run_batches(Scores(), [items], Cells(tmp_path / CELLS), work, lambda _: None)


def test_a_ranking_that_is_none_is_named_by_prompt_and_answers() -> None:
    for found, named in (
        ({"scores": [0.0, math.inf], "logits": None}, "answer 2"),
        ({"scores": None, "logits": [[NAN, 1.0], [NAN, NAN]]}, "answers 2 and 1"),
        ({"scores": None, "logits": [[NAN, None], [0.0, NAN]]}, "answers 1 and 2"),
    ):
        with pytest.raises(UserError, match=f"^ranker: it gave NaN or infinity for prompt p, {named}; "):
            checked({"prompt_id": "p"}, found)


# Win probabilities -------------------------------------------------------------------------------------------------


def test_a_missing_logit_is_not_taken_for_a_tie() -> None:
    """Only the diagonal has none."""
    assert np.isnan(lead({"scores": None, "logits": [[NAN, NAN], [1.0, NAN]]})).tolist() == [
        [False, True],
        [True, False],
    ]
    assert lead({"scores": None, "logits": [[NAN, 3.0], [1.0, NAN]]}).tolist() == [[0, 1], [-1, 0]]


def test_probabilities_lie_in_their_range_and_add_up() -> None:
    fine = [[[0.5, 0.7], [0.3, 0.5]], [[0.5, 1.0], [0.0, 0.5]], [[0.5, 0.7], [0.3 + 1e-12, 0.5]]]
    assert [fault_of(np.array(matrix)) for matrix in fine] == [None] * 3
    faulty = [[[0.5, NAN], [NAN, 0.5]], [[0.5, 0.7], [0.4, 0.5]], [[0.5, 1.2], [-0.2, 0.5]]]
    assert [fault_of(np.array(matrix)) for matrix in faulty] == [(0, 1)] * 3
    assert fault_of(np.array([[0.4, 0.7], [0.3, 0.5]])) == (0, 0)


ESTIMATORS = [typed(f"estimator={kind}").estimator for kind in ("pairwise", "score")]


def pair_up(folder: Path, rankings: list[Row], estimator: Estimator = ESTIMATORS[0]) -> dict[str, float]:
    """The numbers of the stage that pairs the answers 0, 1, ... to prompts p0, p1, ..."""
    responses, ranked = list[Row](), list[Row]()
    for i, ranking in enumerate(rankings):
        made = [
            {"text": str(k), "token_ids": [k], "finish_reason": "stop", "seed": 0, "source": "x"}
            for k in range(len(ranking["scores"] or ranking["logits"]))
        ]
        own = {"prompt_id": f"p{i}", "messages": [], "source": "", "checks": "[]", "prompt_token_ids": [7]}
        responses.append(own | {"responses": made})
        ranked.append(ranking | {"prompt_id": f"p{i}", "truncated": [], "prompt_truncated": False, "terms": None})
    for name in ("responses", "ranking", "out"):
        (folder / name).mkdir(parents=True)
    write_rows(folder / "responses", responses, RESPONSES)
    write_rows(folder / "ranking", ranked, RANKING)
    filters = Filters(drop_identical=True, min_margin=None, max_length_gap=None)
    stage = Pair(rule=BestWorst(), filters=filters, estimator=estimator, seed=0)
    stage(folder / "responses", folder / "ranking", out=folder / "out")
    return json.loads((folder / "out" / "metrics.json").read_text())


def test_a_ranking_without_a_probability_is_refused_by_prompt_and_answers(tmp_path: Path) -> None:
    fine = {"scores": None, "logits": [[NAN, 1.0], [0.0, NAN]]}
    holed = {"scores": None, "logits": [[NAN, NAN], [0.0, NAN]]}
    with pytest.raises(Fault, match=r"ranking/rows.parquet: answers 1 and 2 to prompt p1 "):
        pair_up(tmp_path, [fine, holed])
    assert not (tmp_path / "out" / ROWS).exists()


def test_saturated_probabilities_are_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Leads 50, 40 and 10."""
    leads = {"scores": [0.0, 50.0, 40.0], "logits": None}
    metrics = pair_up(tmp_path / "usual", [leads])
    assert metrics["saturated"] == 2 and "estimator.tau" in saturation_warnings(metrics)[0]
    assert "pair: warning: 2 pairs" in capsys.readouterr().out
    usual = ESTIMATORS[0]
    metrics = pair_up(tmp_path / "wider", [leads], type(usual)(**{**vars(usual), "tau": 10.0}))
    assert metrics["saturated"] == 0 and saturation_warnings(metrics) == [] and "warning" not in capsys.readouterr().out


def test_a_report_warns_at_its_top_and_the_run_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "draw_all", lambda *_: None)
    story = made_up(tmp_path)
    (responses,) = (story.store.path(node) for node in story.nodes if node.name == "it2/responses")
    numbers = {"answers": 40, "prompts": 8, "finished": 0.05, "empty": 0.25, "looping": 0, "alike": 0, "commonest": 0}
    (responses / "metrics.json").write_text(json.dumps(numbers))
    write_report(story.run, story.nodes, story.store, story.folder)
    page, summary = ((story.folder / name).read_text() for name in ("report.md", "summary.txt"))
    for said in ("it2/responses: 10 of 40 answers ", "it2/responses: 38 of 40 answers "):
        assert f"warning: {said}" in summary
        assert f"* {said}" in page.partition("## Progress")[0].replace("\\", "")
