"""Answers that benchmarks measure: one per prompt, or the best of several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from src.evaluation.benchmark import Planner
from src.generation.stage import Generate
from src.kernel.artifact import Node, Stage
from src.kernel.config import UserError, config
from src.kernel.rows import RANKING, RESPONSES, Row, read_rows, write_metrics, write_rows
from src.pairing.win_probability import worth

Several = Annotated[int, Field(ge=2)]
"""Answers to a prompt, of which one is kept."""


def best_answers(name: str, run: Planner, generate: Generate, inputs: tuple[Node, Node], kind: str) -> Node:
    """Plan one answer to each prompt: the node `name`, and where `generate` gives K of them, `<name>_best`.

    `inputs`: prompts, policy. The run's ranker compares the K answers in `<name>_ranking`; a pairwise ranker makes
    K (K - 1) comparisons per prompt. The first of K answers is the one that K=1 gives. `kind`: of work, for forecasts.
    """
    count, n = inputs[0].rows, generate.sampling.K
    answers = run.node(name, generate, inputs, rows=count, work=count * n, kind=kind, job="evaluation")
    if n == 1:
        return answers
    ranking = run.rank(f"{name}_ranking", answers, count, n)
    return run.node(f"{name}_best", BestOf(), (answers, ranking), rows=count, job="evaluation")


@config
class BestOf(Stage):
    """Keeps the answer of each prompt with the highest score, or mean logit, of equals the first (arXiv:2405.00675:
    n = 16, PairRM).

    In: responses with n answers per prompt, their ranking. Out: RESPONSES rows with one answer each, `metrics.json`.
    """

    kind: ClassVar[str] = "responses"
    version: ClassVar[int] = 2

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows, rankings = read_ranked(*inputs)
        best = [row["responses"][int(np.argmax(worth(ranking)))] for row, ranking in zip(rows, rankings, strict=True)]
        write_rows(out, [row | {"responses": [answer]} for row, answer in zip(rows, best, strict=True)], RESPONSES)
        every = [answer for row in rows for answer in row["responses"]]
        write_metrics(out, describe(best) | {f"{name}_of_all": value for name, value in describe(every).items()})


def read_ranked(responses: Path, ranking: Path) -> tuple[list[Row], list[Row]]:
    """Return RESPONSES rows and the RANKING rows of the same prompts. Raises UserError where the prompts differ."""
    rows, ranked = read_rows(responses, RESPONSES), read_rows(ranking, RANKING)
    if [row["prompt_id"] for row in rows] != [row["prompt_id"] for row in ranked]:
        raise UserError(f"{ranking}: ranks other prompts than {responses} has")
    return rows, ranked


def only_answers(folders: Iterable[Path], prompts: Sequence[str], key: str, column: str = "prompt_id") -> list[Row]:
    """Return the one answer to each of `prompts`, in their order, from several responses artifacts.

    `column` names the prompts in RESPONSES rows. Raises UserError, naming the config's `key` of the sampling, for
    prompts that were too long to be answered.
    """
    answers = {row[column]: row["responses"][0] for folder in folders for row in read_rows(folder, RESPONSES)}
    if missing := [prompt for prompt in prompts if prompt not in answers]:
        more = f"{len(missing)} of {len(prompts)} prompts have more, so there is no answer to them"
        remedy = f"raise it, and where the policy's context is too short for both, lower {key}.max_new_tokens"
        raise UserError(f"{key}.max_prompt_tokens: {more}, the first {missing[0]!r:.80}; {remedy}")
    return [answers[prompt] for prompt in prompts]


def describe(answers: Sequence[Row]) -> dict[str, float]:
    """Count answers, and return the shares that ended by themselves and that are empty, and the mean lengths."""
    texts, count = [answer["text"].strip() for answer in answers], len(answers)
    return {
        "answers": count,
        "finished": sum(answer["finish_reason"] == "stop" for answer in answers) / count,
        "empty": texts.count("") / count,
        "tokens": sum(len(answer["token_ids"]) for answer in answers) / count,
        "characters": sum(map(len, texts)) / count,
    }
