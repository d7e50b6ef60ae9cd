"""Best of n: which answer is kept, what is planned, and that one answer stands where n would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from answer_rows import answered, written
from tiny_run import typed

from src.evaluation.answers import BestOf
from src.experiment.graph import nodes_of
from src.kernel.config import UserError
from src.kernel.rows import RANKING, RESPONSES, read_rows, write_rows


def test_each_prompt_keeps_one_whole_answer(tmp_path: Path) -> None:
    """Answer k has k + 1 tokens. A ranking of other prompts is refused, and nothing is written."""
    scores = [[1.0, 2.0, 0.0], [5.0, 2.0, 0.0], [0.0, 0.0, 1.0]]
    texts = ["a", "bb", "ccc"]
    rows = [answered(p, "") | {"responses": [answered(p, text)["responses"][0] for text in texts]} for p in range(3)]
    answers = written(tmp_path / "answers", rows, RESPONSES)
    ranked = [{"prompt_id": f"p{p}", "scores": values} for p, values in enumerate(scores)]
    ranking, stage = written(tmp_path / "ranking", ranked[::-1], RANKING), BestOf()
    (out := tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=rf"^{ranking}: ranks other prompts than {answers} has$"):
        stage(answers, ranking, out=out)
    assert not list(out.iterdir())
    write_rows(ranking, ranked, RANKING)
    stage(answers, ranking, out=out)
    assert read_rows(out, RESPONSES) == [
        row | {"responses": [row["responses"][k]]} for row, k in zip(rows, (1, 0, 2), strict=True)
    ]
    numbers = json.loads((out / "metrics.json").read_text())
    assert (numbers["answers"], numbers["answers_of_all"], numbers["tokens"], numbers["tokens_of_all"]) == (3, 9, 2, 2)


def test_the_first_of_several_is_the_answer_that_there_is_without() -> None:
    """The run's ranker compares: n (n - 1) times per prompt, where it is pairwise."""
    words = ("iter=0", "ranker=pairrm", "benchmark=alpaca_eval")
    more = "benchmark.alpaca_eval.best_of=4"
    plain, several = ({node.name: node for node in nodes_of(typed(*words, *extra))} for extra in ((), (more,)))
    one, four = plain["base/alpaca_eval/answers"].stage, several["base/alpaca_eval/answers"].stage
    assert one.shared() == four.shared() and (one.sampling.K, four.sampling.K) == (1, 4)  # pyright: ignore
    best = several["base/alpaca_eval/answers_best"]
    assert [node.name for node in best.inputs] == ["base/alpaca_eval/answers", "base/alpaca_eval/answers_ranking"]
    assert best.inputs[1].work == 12 * 805 and best in several["base/alpaca_eval/outputs"].inputs
    assert best.name not in plain
