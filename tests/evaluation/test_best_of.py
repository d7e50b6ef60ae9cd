"""Best of n: which answer is kept, what is planned, and that it stands where one answer stands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from made_up_rankings import matrix_of, rankings, sigma
from tiny_run import typed

from src.evaluation.benchmark import BestOf
from src.experiment.graph import nodes_of
from src.kernel.config import UserError
from src.kernel.rows import RANKING, RESPONSES, Row, read_rows, write_rows
from src.pairing.win_probability import Estimator

PAIRWISE = Estimator(kind="pairwise", include_self=True, opponents="all", tau=1.0)
SCORE = replace(PAIRWISE, kind="score")
STAGE = BestOf(estimator=PAIRWISE)


def naive(logits: list[list[float]]) -> list[float]:
    """Mean win probability of each answer, itself counted a half; sigma of mean leads of both orders."""
    k = len(logits)
    leads = [[(logits[i][j] - logits[j][i]) / 2 for j in range(k)] for i in range(k)]
    return [sum(0.5 if i == j else sigma(leads[i][j]) for j in range(k)) / k for i in range(k)]


@given(rankings())
def test_the_answer_kept_is_the_naive_best(ranking: Row) -> None:
    values = ranking["scores"] or naive(ranking["logits"])
    assert values[STAGE.best(ranking)] == pytest.approx(max(values), abs=1e-9)


def test_the_estimator_decides_where_comparisons_go_in_circles() -> None:
    """Answer 0 barely beats all; answer 1 beats two of them by far and only loses to 0: other means, other answers."""
    lead = np.array([[0, 0.2, 0.2, 0.2], [-0.2, 0, 6, 6], [-0.2, -6, 0, 0], [-0.2, -6, 0, 0]])
    ranking = matrix_of(lead.tolist())
    assert STAGE.best(ranking) == BestOf(estimator=SCORE).best(ranking) == 1
    assert BestOf(estimator=replace(PAIRWISE, tau=0.01)).best(ranking) == 0


def test_each_prompt_keeps_one_whole_answer_and_lengths_are_told(tmp_path: Path) -> None:
    """Answer k has k + 1 tokens and seed 10 k. A ranking of other prompts is refused, and nothing is written."""
    places = answers, ranking, out = tuple(tmp_path / name for name in ("answers", "ranking", "out"))
    for place in places:
        place.mkdir()
    scores = {"p0": [1.0, 2.0, 0.0], "p1": [5.0, 2.0, 0.0], "p2": [0.0, 0.0, 1.0]}
    rest = {"messages": [{"role": "user", "content": "q"}], "source": "s", "checks": "[]", "prompt_token_ids": [1]}
    rows = [{"prompt_id": name, "responses": [_answer(k) for k in range(3)]} | rest for name in scores]
    write_rows(answers, rows, RESPONSES)
    ranked = [{"prompt_id": name, "scores": own} for name, own in scores.items()]
    write_rows(ranking, ranked[::-1], RANKING)
    with pytest.raises(UserError, match=rf"^{ranking}: ranks other prompts than {answers} has$"):
        STAGE(answers, ranking, out=out)
    assert not list(out.iterdir())
    write_rows(ranking, ranked, RANKING)
    STAGE(answers, ranking, out=out)
    before, after = (read_rows(place, RESPONSES) for place in (answers, out))
    assert [row["responses"] for row in after] == [[_answer(k)] for k in (1, 0, 2)]
    assert [row | {"responses": 0} for row in after] == [row | {"responses": 0} for row in before]
    told = json.loads((out / "metrics.json").read_text())
    counts = {"prompts": 3, "answers": 9, "distinct": 1.0}
    assert told == counts | {"tokens": pytest.approx(2), "tokens_of_all": 2.0, "first": pytest.approx(1 / 3)}


def _answer(k: int) -> Row:
    return {"text": f"answer {k}", "token_ids": [7] * (k + 1), "finish_reason": "stop", "seed": 10 * k, "source": "x"}


def test_the_first_of_several_is_the_answer_that_there_is_without() -> None:
    """The run's ranker compares: n (n - 1) times a prompt, where it is pairwise."""
    words = ("iter=0", "ranker=pairrm", "benchmark=alpaca_eval")
    plain, several = ({node.name: node for node in nodes_of(typed(*words, *more))} for more in ((), (BEST,)))
    one, four = plain["base/alpaca_eval/answers"].stage, several["base/alpaca_eval/answers"].stage
    assert one.shared() == four.shared() and (one.sampling.K, four.sampling.K) == (1, 4)  # pyright: ignore
    best = several["base/alpaca_eval/best"]
    assert [node.name for node in best.inputs] == ["base/alpaca_eval/answers", "base/alpaca_eval/ranking"]
    assert best.inputs[1].work == 12 * 805 and best in several["base/alpaca_eval/outputs"].inputs
    assert "base/alpaca_eval/best" not in plain


BEST = "benchmark.alpaca_eval.best_of=4"
