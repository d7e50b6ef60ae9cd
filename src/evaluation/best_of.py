"""BestOf: of the n answers to each prompt, the one that the ranker puts first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from src.evaluation.benchmark import Planner
from src.kernel.artifact import Node
from src.kernel.config import UserError, config
from src.kernel.rows import RANKING, RESPONSES, Row, read_rows, write_metrics, write_rows
from src.pairing.win_probability import Estimator, exact_means

Several = Annotated[int, Field(ge=2)]
"""Answers to a prompt, of which one is kept."""


def best_of(name: str, run: Planner, responses: Node, count: int, n: int) -> Node:
    """Adds the node `<name>/best`: `responses` (`count` prompts, `n` answers each), cut to each prompt's best answer.

    `name` is a policy and a benchmark, such as `it3/alpaca_eval`. The run's ranker compares the answers in the node
    `<name>/ranking`, an input of the one returned; a pairwise ranker makes n (n - 1) comparisons a prompt. The first
    of n answers is the one that K=1 gives. n = 1: `responses` itself, and nothing is ranked.
    """
    if n == 1:
        return responses
    ranking = run.rank(f"{name}/ranking", responses, count, n)
    stage = BestOf(estimator=run.estimator)
    return run.node(f"{name}/best", stage, (responses, ranking), rows=count, job="evaluation")


@config
class BestOf:
    """Keeps the answer of each prompt that the ranker puts first (arXiv:2405.00675: n = 16, PairRM).

    In: responses with n answers a prompt, their ranking. Out: RESPONSES rows with one answer each, `metrics.json`.
    """

    kind: ClassVar[str] = "responses"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    estimator: Estimator
    """Says P(answer > answer), where the ranker gives no scores."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows, ranking = read_rows(inputs[0], RESPONSES), read_rows(inputs[1], RANKING)
        if [row["prompt_id"] for row in rows] != [ranked["prompt_id"] for ranked in ranking]:
            raise UserError(f"{inputs[1]}: ranks other prompts than {inputs[0]} has")
        places = [self.best(ranked) for ranked in ranking]
        best = [row | {"responses": [row["responses"][place]]} for row, place in zip(rows, places, strict=True)]
        write_rows(out, best, RESPONSES)
        lengths = [[len(answer["token_ids"]) for answer in row["responses"]] for row in rows]
        count = sum(map(len, lengths))
        numbers = {
            "prompts": len(rows),
            "answers": count,
            "tokens": float(np.mean([each[place] for each, place in zip(lengths, places, strict=True)])),
            "tokens_of_all": float(np.mean([tokens for each in lengths for tokens in each])),
            "first": places.count(0) / len(places),  # about 1/n where the answers do not differ
            "distinct": sum(len({answer["text"] for answer in row["responses"]}) for row in rows) / count,
        }
        write_metrics(out, numbers)

    def best(self, ranking: Row) -> int:
        """Finds the place of the highest score, or of the highest mean P(it beats another); of equals the first.

        Answers whose comparisons are the same numbers in another order are equal.
        """
        if ranking["scores"] is not None:
            return int(np.argmax(ranking["scores"]))
        return int(np.argmax(exact_means(self.estimator.matrix(ranking))))
