"""BestOf: of the n answers to each prompt, the one that the ranker puts first.

In: responses with n answers a prompt, their ranking. Out: RESPONSES rows with one answer each, and `metrics.json`.
Re-ranking as SPPO's paper has it (arXiv:2405.00675: n = 16, PairRM): an option of every benchmark of answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from src.kernel.artifact import Node
from src.kernel.config import UserError, config
from src.kernel.rows import RANKING, RESPONSES, Row, read_rows, write_metrics, write_rows
from src.pairing.win_probability import Estimator, exact_means

if TYPE_CHECKING:
    from src.experiment.run import Run

Several = Annotated[int, Field(ge=2)]
"""Answers to a prompt, of which one is kept."""


def best_of(name: str, run: Run, responses: Node, count: int, n: int) -> Node:
    """The node `<name>/best`: `responses` (`count` prompts, `n` answers each), cut to the best answer of each prompt.

    `name` is a policy and a benchmark, such as `it3/alpaca_eval`. `responses` must be sampled with K=n by its maker,
    such as `run.generate(replace(sampling, K=n), seed)`; the first of n answers is the one that K=1 gives. They are
    compared by the run's ranker in the node `<name>/ranking`, which is an input of the one returned: whoever yields
    that one has both. A pairwise ranker makes n (n - 1) comparisons a prompt, 240 for n = 16; a scalar one n scores.
    What is returned has RESPONSES rows in the order of `responses`, one answer each, and stands wherever answers
    sampled with K=1 do. n = 1: `responses` itself, and nothing is ranked.
    """
    if n == 1:
        return responses
    ranking = run.rank(f"{name}/ranking", responses, count, n)
    stage = BestOf(estimator=run.estimator)
    return run.node(f"{name}/best", stage, (responses, ranking), rows=count, job="evaluation")


@config
class BestOf:
    kind: ClassVar[str] = "responses"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    estimator: Estimator
    """Of P(answer > answer), where the ranker gives no scores."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows, ranking = read_rows(inputs[0], RESPONSES), read_rows(inputs[1], RANKING)
        if [row["prompt_id"] for row in rows] != [ranked["prompt_id"] for ranked in ranking]:
            raise UserError(f"{inputs[1]}: ranks other prompts than {inputs[0]} has")
        places = [self.best(ranked) for ranked in ranking]
        best = [row | {"responses": [row["responses"][place]]} for row, place in zip(rows, places, strict=True)]
        write_rows(out, best, RESPONSES)
        write_metrics(out, _summary(rows, places))

    def best(self, ranking: Row) -> int:
        """Place of the highest score, or of the highest mean P(it beats another); of equals the first.

        Answers whose comparisons are the same numbers in another order are equal.
        """
        if ranking["scores"] is not None:
            return int(np.argmax(ranking["scores"]))
        return int(np.argmax(exact_means(self.estimator.matrix(ranking))))


def _summary(rows: list[Row], places: list[int]) -> dict[str, Any]:
    """Whether the ranker goes by length shows in `tokens` beside `tokens_of_all`.

    first: share of prompts whose first answer is the best; n answers of no difference have about 1/n, or 1 where they
    are equal. distinct: different texts an answer.
    """
    lengths = [[len(answer["token_ids"]) for answer in row["responses"]] for row in rows]
    texts = sum(len({answer["text"] for answer in row["responses"]}) for row in rows)
    return {
        "prompts": len(rows),
        "answers": sum(map(len, lengths)),
        "tokens": float(np.mean([own[place] for own, place in zip(lengths, places, strict=True)])),
        "tokens_of_all": float(np.mean([tokens for own in lengths for tokens in own])),
        "first": places.count(0) / len(places),
        "distinct": texts / sum(map(len, lengths)),
    }
