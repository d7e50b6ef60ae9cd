"""A chat model as the preference model: by comparing two answers, or by giving points to one.

Pairwise: C_ij is the logit of its verdict that answer i, shown first, beats answer j; every pair is judged in both
orders. By points: an answer's score is the points it gets. What is kept of a judge is its reply, not the verdict: who
mends the pattern asks for nothing again.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Mapping
from itertools import accumulate, permutations
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, PositiveFloat

from src.kernel.cells import CELLS, cell_key
from src.kernel.config import Free, Share, config
from src.kernel.rows import Row
from src.modeling.asking import Cell, Token, ask_all, read_completion, read_tokens
from src.modeling.endpoint import JudgeEndpoint
from src.ranking.stage import Ranker

SENT_VERSION = 1
"""Raised, and with it the judges' `code_version`, when equal fields send another text or replies are kept otherwise."""


class Question(NamedTuple):
    """Texts that a verdict is asked about; equal questions are one request."""

    prompt: str
    answers: tuple[str, ...]
    """Texts in the order shown."""

    @property
    def key(self) -> str:
        return cell_key(self.prompt, *self.answers)


Questions = Mapping[tuple[int, ...], Question]
"""Places of answers to a prompt, in the order shown -> the question about them."""


class Verdict(NamedTuple):
    value: float | None
    """None: malformed."""
    input_tokens: int
    output_tokens: int


@config
class LlmJudge(Ranker):
    """A chat model that judges; its two kinds share all but their verdicts."""

    code_version: ClassVar[int] = 1
    placeholders: ClassVar[tuple[str, ...]]
    """The placeholders of the answers."""
    top_logprobs: ClassVar[int] = 0

    endpoint: JudgeEndpoint
    instruction: str
    """Text of a request: placeholders are {prompt}, those of the answers, and {fence}, which no text can imitate."""
    verdict_pattern: str
    """Regular expression; its first group is the verdict. The last match in a reply counts."""
    malformed_share_limit: Free[Share]
    """More malformed verdicts end the ranking; 1: none do."""

    def __post_init__(self) -> None:
        missing = [f"{{{name}}}" for name in ("prompt", *self.placeholders) if f"{{{name}}}" not in self.instruction]
        if missing:
            raise ValueError(f"instruction: lacks the placeholder {', '.join(missing)}")
        try:
            groups = re.compile(self.verdict_pattern).groups
        except re.error as error:
            raise ValueError(f"verdict_pattern: no regular expression ({error})") from error
        if not groups:
            raise ValueError("verdict_pattern: needs a group that holds the verdict")

    @property
    def server(self) -> JudgeEndpoint:
        return self.endpoint

    def shared(self) -> Any:
        """Return what a reply depends on beside the question."""
        fields = {"fields": self.endpoint.fields(), "instruction": self.instruction, "top_logprobs": self.top_logprobs}
        return {"sent_version": SENT_VERSION} | fields

    def text(self, question: Question) -> str:
        """Put the texts into the instruction in one pass: what a text holds is never read as a placeholder."""
        texts = {"prompt": question.prompt, "fence": question.key[:8]}
        texts |= dict(zip(self.placeholders, question.answers, strict=True))
        return re.sub(rf"\{{({'|'.join(texts)})\}}", lambda match: texts[match[1]], self.instruction)

    @abstractmethod
    def value(self, reply: Cell) -> float | None:
        """Return what the reply's verdict says; None where it is malformed."""
        ...

    def verdicts(self, rows: list[Row], work: Path) -> tuple[list[Questions], dict[Question, Verdict]]:
        """Ask about RESPONSES rows what is not known yet, and return the questions of each row too.

        A question that the endpoint refuses has a malformed verdict.
        """
        questions_by_row = [questions_of(row, len(self.placeholders)) for row in rows]
        fields = self.endpoint.fields()
        if self.top_logprobs:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        questions = {question.key: question for of_row in questions_by_row for question in of_row.values()}
        replies = ask_all(
            questions,
            lambda question: fields | {"messages": [{"role": "user", "content": self.text(question)}]},
            self.endpoint,
            "ranker.endpoint",
            work / CELLS,
            read=read_reply,
            description="a verdict",
            is_usable=lambda reply: self.value(reply) is not None,
            limit_key="ranker.malformed_share_limit",
            limit=self.malformed_share_limit,
            remedy="mend ranker.verdict_pattern, which reads the kept replies again without a request; another "
            "ranker.instruction, or another model, seed or temperature of ranker.endpoint, asks anew",
        )
        verdicts = dict.fromkeys(questions.values(), Verdict(None, 0, 0))
        for key, reply in replies.items():
            verdicts[questions[key]] = Verdict(self.value(reply), reply["input_tokens"], reply["output_tokens"])
        return questions_by_row, verdicts


@config
class PairwiseJudge(LlmJudge):
    """Says which of two answers is better.

    A malformed verdict counts as a tie. Answers of equal text tie without being judged. The placeholders of
    `instruction` are {first} and {second}; a verdict is A, B or tie in any case.
    """

    scalar: ClassVar[bool] = False
    placeholders: ClassVar[tuple[str, ...]] = ("first", "second")

    strength: PositiveFloat
    """Logits that a verdict is worth where the server gives no log-probabilities."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)]  # pyright: ignore[reportIncompatibleVariableOverride]
    """Alternatives asked for at each token; 0 asks for none, so every verdict is worth `strength`."""

    def value(self, reply: Cell) -> float | None:
        """Return the logit that the first answer wins, 0 for a tie."""
        verdict = last_match(self.verdict_pattern, reply["text"])[0].upper()
        sign = {"A": 1.0, "B": -1.0, "TIE": 0.0}.get(verdict)
        logit = logit_of_verdict(reply["tokens"], self.verdict_pattern) if sign else None
        return logit if logit is not None or sign is None else sign * self.strength

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        questions_by_row, verdicts = self.verdicts(rows, work)
        ranking: list[Row] = []
        for row, questions in zip(rows, questions_by_row, strict=True):
            k = len(row["responses"])
            logits = [[math.nan if i == j else 0.0 for j in range(k)] for i in range(k)]
            for (i, j), question in questions.items():
                logits[i][j] = verdicts[question].value or 0.0
            ranking.append({"logits": logits, "scores": None} | _notes(questions, verdicts, k))
        return ranking


@config
class PointsJudge(LlmJudge):
    """Gives points to one answer, as WPO's first version did (arXiv:2406.11827).

    An answer whose verdict is malformed gets the mean of the prompt's other answers, so that it is neither best nor
    worst for it; where they have none, the mean of the whole ranking. The placeholder of `instruction` is {answer}.
    """

    scalar: ClassVar[bool] = True
    placeholders: ClassVar[tuple[str, ...]] = ("answer",)

    lowest: float
    """Points; fewer are malformed."""
    highest: float
    """Points; more are malformed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lowest >= self.highest:
            raise ValueError(f"lowest: {self.lowest:g} is not below highest={self.highest:g}")

    def value(self, reply: Cell) -> float | None:
        """Return the points."""
        try:
            points = float(last_match(self.verdict_pattern, reply["text"])[0])
        except ValueError:
            return None
        return points if self.lowest <= points <= self.highest else None

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        questions_by_row, verdicts = self.verdicts(rows, work)
        points = [[verdicts[question].value for question in questions.values()] for questions in questions_by_row]
        all_points = [value for values in points for value in values if value is not None]
        mean_points = fmean(all_points or [(self.lowest + self.highest) / 2])
        ranking: list[Row] = []
        for questions, values in zip(questions_by_row, points, strict=True):
            mean = fmean([value for value in values if value is not None] or [mean_points])
            scores = [mean if value is None else value for value in values]
            ranking.append({"logits": None, "scores": scores} | _notes(questions, verdicts, len(scores)))
        return ranking


def questions_of(row: Row, at_a_time: int) -> Questions:
    """Return a question for each ordered choice of answers; none for equal texts.

    The prompt is shown as the request alone, or as the lines of a conversation.
    """
    messages, texts = row["messages"], [answer["text"] for answer in row["responses"]]
    lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    prompt = messages[0]["content"] if len(messages) == 1 else "\n".join(lines)
    chosen = {places: tuple(texts[i] for i in places) for places in permutations(range(len(texts)), at_a_time)}
    return {places: Question(prompt, answers) for places, answers in chosen.items() if len({*answers}) == at_a_time}


def read_reply(response: Any) -> Cell:
    """Return the parts of a reply that a verdict pattern can use: its text, and the alternatives of its tokens."""
    return read_completion(response) | {"tokens": read_tokens(response)}


def last_match(pattern: str, text: str) -> tuple[str, int]:
    """Return the first group of the last match, and where it starts; empty where there is none."""
    match = max(re.finditer(pattern, text), key=lambda match: match.start(), default=None)
    return (match[1] or "", match.start(1)) if match else ("", -1)


def logit_of_verdict(tokens: list[Token], pattern: str) -> float | None:
    """Return log p(A) - log p(B), nats, at the token that says the verdict; None where that is not known.

    A letter that is not among the alternatives has at most the probability of the least likely of them, and of all
    that they leave: that bound is taken.
    """
    verdict, start = last_match(pattern, "".join(text for text, _ in tokens))
    if not verdict:
        return None
    ends = accumulate(len(text) for text, _ in tokens)
    _, alternatives = next(token for token, end in zip(tokens, ends, strict=True) if start < end)
    listed = [(text.strip(), math.exp(logp)) for text, logp in alternatives if math.isfinite(logp)]
    chance = {letter: sum(p for text, p in listed if text == letter) for letter in "AB"}
    if not any(chance.values()):
        return None
    left = 1 - sum(p for _, p in listed)
    bound = max(1e-9, min(left, *(p for _, p in listed)))
    return math.log(chance["A"] or bound) - math.log(chance["B"] or bound)


def _notes(questions: Questions, verdicts: Mapping[Question, Verdict], k: int) -> Row:
    """Return the other columns of a ranking of k answers.

    `malformed` is 1 for an answer that a malformed verdict is on. The other terms add up to the prompt's totals: a
    question counts once, however many answers have its texts, and is shared by the answers it is on.
    """
    names = ("judge_input_tokens", "judge_output_tokens", "malformed_verdicts", "malformed")
    terms = {name: [0.0] * k for name in names}
    last_places = {question: places for places, question in questions.items()}
    for places, question in questions.items():
        value, *tokens = verdicts[question]
        for i in places:
            terms["malformed"][i] = max(terms["malformed"][i], float(value is None))
            if places == last_places[question]:
                for name, amount in zip(names, (*tokens, value is None), strict=False):
                    terms[name][i] += amount / len(places)
    named = [{"name": name, "values": values} for name, values in terms.items()]
    return {"truncated": [False] * k, "prompt_truncated": False, "terms": named}
