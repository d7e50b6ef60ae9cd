"""Best of n: which answer is kept, what is planned, and that it stands where one answer stands."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_rankings import NAN, matrix_of, rankings, scalar, sigma
from test_pairwise_ranker import Duel, quality
from tiny_run import World, call, tiny, typed

from src import records
from src.artifact import with_ancestors
from src.config import UserError
from src.evaluation.best_of import BestOf, best_of
from src.generation.stage import Generate
from src.records import Row
from src.win_probability import Estimator

PAIRWISE = Estimator(kind="pairwise", include_self=True, opponents="all", tau=1.0)
SCORE = replace(PAIRWISE, kind="score")
STAGE = BestOf(estimator=PAIRWISE)


def naive(ranking: Row, tau: float) -> list[float]:
    """Mean win probability of each answer, itself counted a half; sigma of mean leads of both orders."""
    logits, k = ranking["logits"], len(ranking["logits"])
    return [
        sum(0.5 if i == j else sigma((logits[i][j] - logits[j][i]) / 2 / tau) for j in range(k)) / k for i in range(k)
    ]


@given(rankings())
def test_the_answer_kept_is_the_naive_best(ranking: Row) -> None:
    values = ranking["scores"] or naive(ranking, 1.0)
    assert values[STAGE.best(ranking)] == pytest.approx(max(values), abs=1e-9)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=16))
def test_a_ranker_that_compares_by_a_score_keeps_the_same_answer_as_its_scores(scores: list[float]) -> None:
    """Whatever it likes about the place where an answer is shown. Scores nearer than rounding are not told apart."""
    scores = [round(score, 3) for score in scores]
    logits = [[NAN if i == j else a - b + 7 for j, b in enumerate(scores)] for i, a in enumerate(scores)]
    for stage in (STAGE, BestOf(estimator=SCORE)):
        assert scores[stage.best(matrix_of(logits))] == scores[stage.best(scalar(scores))] == max(scores)


def test_of_equals_the_first_is_kept() -> None:
    assert STAGE.best(scalar([1.0, 3.0, 3.0, 2.0])) == 1
    assert STAGE.best(scalar([0.0] * 5)) == 0
    # The same answers in another order: sums of equal numbers are rounded once, so none is ahead by its digits.
    strange = [0.1, 0.2, 0.3, 0.7, -1.1]
    logits = [[NAN if i == j else (a - b) / 3 for j, b in enumerate(strange * 2)] for i, a in enumerate(strange * 2)]
    for order in itertools.islice(itertools.permutations(range(10)), 0, 3_000_000, 7919):
        moved = [[logits[i][j] for j in order] for i in order]
        assert STAGE.best(matrix_of(moved)) == min(order.index(3), order.index(8))


def test_the_estimator_decides_where_comparisons_go_in_circles() -> None:
    """Answer 0 barely beats all; answer 1 beats two of them by far and only loses to 0: other means, other answers."""
    lead = np.array([[0, 0.2, 0.2, 0.2], [-0.2, 0, 6, 6], [-0.2, -6, 0, 0], [-0.2, -6, 0, 0]])
    ranking = matrix_of(lead.tolist())
    assert naive(ranking, 100.0)[1] > naive(ranking, 100.0)[0]
    assert STAGE.best(ranking) == BestOf(estimator=SCORE).best(ranking) == 1
    assert BestOf(estimator=replace(PAIRWISE, tau=0.01)).best(ranking) == 0


def written(folder: Path, scores: list[list[float]], ids: list[str] | None = None) -> tuple[Path, Path]:
    """Responses, answer k with k + 1 tokens and seed 10 k, and their ranking."""
    answers, ranking = folder / "answers", folder / "ranking"
    for place in (answers, ranking, folder / "out"):
        place.mkdir(parents=True)
    rows = [
        {"prompt_id": f"p{p}", "messages": [{"role": "user", "content": "q"}], "source": "s", "checks": "[]"}
        | {"prompt_token_ids": [1], "responses": [_answer(k) for k in range(len(own))]}
        for p, own in enumerate(scores)
    ]
    records.write_rows(answers, rows, records.RESPONSES)
    names = ids or [row["prompt_id"] for row in rows]
    ranked = [{"prompt_id": name, "scores": own} for name, own in zip(names, scores, strict=True)]
    records.write_rows(ranking, ranked, records.RANKING)
    return answers, ranking


def _answer(k: int) -> Row:
    return {"text": f"answer {k}", "token_ids": [7] * (k + 1), "finish_reason": "stop", "seed": 10 * k, "source": "x"}


def test_each_prompt_keeps_one_whole_answer_and_lengths_are_told(tmp_path: Path) -> None:
    answers, ranking = written(tmp_path, [[1.0, 2.0, 0.0], [5.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    STAGE(answers, ranking, out=tmp_path / "out")
    before, after = (records.read_rows(place, records.RESPONSES) for place in (answers, tmp_path / "out"))
    assert [row["responses"] for row in after] == [[_answer(k)] for k in (1, 0, 2)]
    assert [row | {"responses": 0} for row in after] == [row | {"responses": 0} for row in before]
    told = json.loads((tmp_path / "out/metrics.json").read_text())
    assert told == {
        "prompts": 3,
        "answers": 9,
        "tokens": pytest.approx((2 + 1 + 3) / 3),
        "tokens_of_all": 2.0,
        "first": pytest.approx(1 / 3),
        "distinct": 1.0,
    }


def test_a_ranking_of_other_prompts_is_refused_and_nothing_written(tmp_path: Path) -> None:
    answers, ranking = written(tmp_path, [[1.0, 2.0], [0.0, 1.0]], ids=["p1", "p0"])
    with pytest.raises(UserError, match=rf"^{ranking}: ranks other prompts than {answers} has$"):
        STAGE(answers, ranking, out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def planned(n: int, *more: str) -> Any:
    run = typed("iter=1", *more)
    run = replace(run, ranker=Duel(name="duel")) if "scalar" not in more else run
    held_out, policy = (run.node(name, run.model) for name in ("held_out/prompts", "base/policy"))
    stage = run.generate(replace(run.sampling, K=n), seed=950)
    responses = run.node("base/x/answers", stage, (held_out, policy), rows=7)
    return run, responses, best_of("base/x", run, responses, 7, n)


def test_sixteen_answers_are_240_comparisons_a_prompt_and_the_ranking_comes_with_it() -> None:
    _, responses, best = planned(16)
    names = {node.name: node for node in with_ancestors(best)}
    ranking = names["base/x/ranking"]
    assert ranking.work == 7 * 240 and ranking.rows == best.rows == 7 and ranking.inputs == (responses,)
    assert best.name == "base/x/best" and best.inputs == (responses, ranking)
    assert {node.job for node in (ranking, best)} == {"evaluation"}


def test_one_answer_is_not_ranked() -> None:
    _, responses, best = planned(1)
    assert best is responses


def test_more_answers_share_the_cells_of_fewer() -> None:
    """So that best of 16 after best of 1 asks for fifteen."""
    one, many = planned(1)[1].stage, planned(16)[1].stage
    assert isinstance(one, Generate) and one.shared() == many.shared()


RANKERS = {
    "one that scores": None,
    "one that compares": ["~ranker", f"+ranker={{_target_: {Duel.__module__}.Duel, name: duel}}"],
}


@pytest.mark.full
@pytest.mark.parametrize("kind", RANKERS)
def test_best_of_sixteen_by_the_command(kind: str, llama: Path, tmp_path: Path) -> None:
    """The first of sixteen is the answer that one alone is, byte for byte; the one kept is the ranker's best."""
    asked = [
        {"key": n, "prompt": f"Say {n}.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        for n in range(4)
    ]
    (path := tmp_path / "ifeval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    own = [
        "benchmark=ifeval",
        *(f"benchmark.ifeval.{w}" for w in (f"path={path}", "max_new_tokens=8", "temperature=1.0")),
    ]
    words = tiny(llama, tmp_path, "iter=0", *own, "only=base/ifeval/scores", ranker=RANKERS[kind])
    several = [*words, "benchmark.ifeval.best_of=16"]
    assert call(*words) == 0 and call(*several) == 0
    one, many, best = (
        records.read_rows(_made(tmp_path, which, name), records.RESPONSES)
        for which, name in ((words, "answers"), (several, "answers"), (several, "best"))
    )
    ranking = records.read_rows(_made(tmp_path, several, "ranking"), records.RANKING)
    scores = pq.read_table(_made(tmp_path, several, "scores") / records.ROWS).to_pylist()
    for alone, all_of_it, kept, ranked, score in zip(one, many, best, ranking, scores, strict=True):
        answers = all_of_it["responses"]
        assert len(answers) == 16 and len({answer["seed"] for answer in answers}) == 16
        assert json.dumps(all_of_it | {"responses": answers[:1]}) == json.dumps(alone)
        place = 0
        for k, answer in enumerate(answers):
            here, there = (
                (ranked["scores"][k], ranked["scores"][place])
                if ranked["scores"]
                else (quality(answer), quality(answers[place]))
            )
            place = k if here > there else place
        assert kept == all_of_it | {"responses": [answers[place]]}
        assert (score["prompt_id"], score["tokens"]) == (kept["prompt_id"], len(answers[place]["token_ids"]))
    assert any(kept["responses"] != alone["responses"] for kept, alone in zip(best, one, strict=True))


def _made(place: Path, words: list[str], name: str) -> Path:
    node = next(node for node in typed(*words).nodes() if node.name == f"base/ifeval/{name}")
    return World(place, words).store.path(node)
