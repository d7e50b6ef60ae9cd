"""A chat model as the preference model: by comparing two answers, or by giving points to one.

Pairwise: C_ij is the logit of its verdict that answer i, shown first, beats answer j; every pair is judged in both
orders. By points: an answer's score is the points it gets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveFloat

from src.kernel.artifact import Stage
from src.kernel.config import Free, Label, Share, config
from src.kernel.rows import Row
from src.ranking.asking import collect
from src.ranking.replies import Reply, check_pattern, logit_of_verdict, said
from src.ranking.verdicts import JudgeEndpoint, Question, Verdict, what_is_sent

FENCE = "fence"
"""Placeholder for 8 hex digits that depend on the texts, so that no text can imitate the marks it is shown between."""


@config
class PairwiseJudge:
    """Says which of two answers is better.

    A malformed verdict counts as a tie. Answers of equal text tie without being judged.
    """

    scalar: ClassVar[bool] = False
    code_version: ClassVar[int] = 1

    name: Free[Label]
    endpoint: JudgeEndpoint
    instruction: str
    """With the placeholders {prompt}, {first} and {second}, and {fence} for marks that no text can imitate."""
    verdict_pattern: str
    """Regular expression; its first group is A, B or tie in any case. The last match in a reply counts."""
    strength: PositiveFloat
    """Logits that a verdict is worth where the server gives no log-probabilities."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)]
    """Alternatives asked for at each token; 0 asks for none, so every verdict is worth `strength`."""
    malformed_share_limit: Free[Share]
    """More malformed verdicts end the ranking; 1: none do."""

    def __post_init__(self) -> None:
        _check(self.instruction, ("prompt", "first", "second"), self.verdict_pattern)

    @property
    def models(self) -> tuple[Stage, ...]:
        return ()

    def shared(self) -> Any:
        return what_is_sent(self)

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        asked = [_pairs(row) for row in rows]
        found = collect(self, (question for one in asked for question in one.values()), work)
        return [
            {"logits": _logits(one, found, len(row["responses"])), "scores": None} | _rest(one, found, row)
            for row, one in zip(rows, asked, strict=True)
        ]

    def text(self, question: Question) -> str:
        first, second = question.answers
        return _fill(self.instruction, question, {"first": first, "second": second})

    def value(self, reply: Reply) -> float | None:
        """Logit that the first answer wins, 0 for a tie."""
        sign = {"A": 1.0, "B": -1.0, "TIE": 0.0}.get(said(self.verdict_pattern, reply.text).upper())
        likely = logit_of_verdict(reply.tokens, self.verdict_pattern) if sign else None
        return likely if likely is not None or sign is None else sign * self.strength


@config
class PointsJudge:
    """Gives points to one answer, as WPO's first version did (arXiv:2406.11827).

    An answer whose verdict is malformed gets the mean of the prompt's other answers, so that it is neither best nor
    worst for it; where they have none, the mean of the whole ranking.
    """

    scalar: ClassVar[bool] = True
    code_version: ClassVar[int] = 1

    name: Free[Label]
    endpoint: JudgeEndpoint
    instruction: str
    """With the placeholders {prompt} and {answer}, and {fence} for marks that no text can imitate."""
    verdict_pattern: str
    """Regular expression; its first group is the points. The last match in a reply counts."""
    lowest: float
    """Points; fewer are malformed."""
    highest: float
    """Points; more are malformed."""
    malformed_share_limit: Free[Share]
    """More malformed verdicts end the ranking; 1: none do."""

    def __post_init__(self) -> None:
        _check(self.instruction, ("prompt", "answer"), self.verdict_pattern)
        if self.lowest >= self.highest:
            raise ValueError(f"lowest: {self.lowest:g} is not below highest={self.highest:g}")

    @property
    def models(self) -> tuple[Stage, ...]:
        return ()

    def shared(self) -> Any:
        return what_is_sent(self)

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        asked = [_singles(row) for row in rows]
        found = collect(self, (question for one in asked for question in one.values()), work)
        points = [[found[question.key].value for question in one.values()] for one in asked]
        usual = _mean([value for some in points for value in some], (self.lowest + self.highest) / 2)
        return [
            {"logits": None, "scores": [_mean(some, usual) if value is None else value for value in some]}
            | _rest(one, found, row)
            for row, one, some in zip(rows, asked, points, strict=True)
        ]

    @property
    def top_logprobs(self) -> int:
        return 0

    def text(self, question: Question) -> str:
        return _fill(self.instruction, question, {"answer": question.answers[0]})

    def value(self, reply: Reply) -> float | None:
        try:
            points = float(said(self.verdict_pattern, reply.text))
        except ValueError:
            return None
        return points if self.lowest <= points <= self.highest else None


Asked = Mapping[tuple[int, ...], Question]
"""What is asked on which answers, in the order shown."""


def shown_prompt(messages: list[dict[str, str]]) -> str:
    """The request alone, or the lines of a conversation."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


def _pairs(row: Row) -> Asked:
    texts = [answer["text"] for answer in row["responses"]]
    prompt = shown_prompt(row["messages"])
    return {
        (i, j): Question(prompt, (texts[i], texts[j]))
        for i, j in permutations(range(len(texts)), 2)
        if texts[i] != texts[j]
    }


def _singles(row: Row) -> Asked:
    prompt = shown_prompt(row["messages"])
    return {(i,): Question(prompt, (answer["text"],)) for i, answer in enumerate(row["responses"])}


def _logits(asked: Asked, found: Mapping[str, Verdict], k: int) -> list[list[float]]:
    matrix = [[math.nan if i == j else 0.0 for j in range(k)] for i in range(k)]
    for (i, j), question in asked.items():
        matrix[i][j] = found[question.key].value or 0.0
    return matrix


def _rest(asked: Asked, found: Mapping[str, Verdict], row: Row) -> Row:
    k = len(row["responses"])
    terms = [{"name": name, "values": values} for name, values in _terms(asked, found, k).items()]
    return {"truncated": [False] * k, "prompt_truncated": False, "terms": terms}


def _terms(asked: Asked, found: Mapping[str, Verdict], k: int) -> dict[str, list[float]]:
    """Of k answers. `malformed`: 1 for an answer that a malformed verdict is on, else 0.

    The others add up to the prompt's totals: a question counts once, however many answers have its texts, and is
    shared by the answers it is on.
    """
    names = ("judge_input_tokens", "judge_output_tokens", "malformed", "malformed_verdicts")
    terms = {name: [0.0] * k for name in names}
    for question, answers in {question: answers for answers, question in asked.items()}.items():
        verdict = found[question.key]
        for i in answers:
            terms["judge_input_tokens"][i] += verdict.input_tokens / len(answers)
            terms["judge_output_tokens"][i] += verdict.output_tokens / len(answers)
            terms["malformed_verdicts"][i] += (verdict.value is None) / len(answers)
    for i in {i for answers, question in asked.items() if found[question.key].value is None for i in answers}:
        terms["malformed"][i] = 1.0
    return terms


def _mean(values: list[float | None], otherwise: float) -> float:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else otherwise


def _fill(instruction: str, question: Question, answers: dict[str, str]) -> str:
    """In one pass, so that what a text holds is never read as a placeholder."""
    texts = {"prompt": question.prompt, FENCE: question.key[:8]} | answers
    return re.sub(rf"\{{({'|'.join(texts)})\}}", lambda match: texts[match[1]], instruction)


def _check(instruction: str, names: tuple[str, ...], pattern: str) -> None:
    """Raises ValueError for an instruction without one of its placeholders, or a pattern without a group."""
    missing = [f"{{{name}}}" for name in names if f"{{{name}}}" not in instruction]
    if missing:
        raise ValueError(f"instruction: lacks the placeholder {', '.join(missing)}")
    check_pattern(pattern)
