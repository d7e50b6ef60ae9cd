"""The embedded ranker: a real preference signal that needs no download.

score = check * (share of the prompt's checkable instructions kept)
      + relevance * cos(prompt, answer)           small sentence-embedding model
      + pmi * (log p(y|x) - log p(y)) / tokens ** pmi_length_power          nats, under a frozen model
      + finished * [the answer ended by itself] + substance * min(1, words / SUBSTANCE_WORDS)
      - repetition * (share of repeated word trigrams) - echo * (share of trigrams copied from the prompt)
P(y > y') = sigma((score - score') / tau).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from src import checks
from src.artifact import Stage
from src.config import Free, Share, config
from src.ranking.stage import Judge
from src.records import Row
from src.text_quality import echo, repetition

if TYPE_CHECKING:
    from src.ranking.signals import Pmi, Relevance

PMI_RANGE = (-5.0, 25.0)
"""Beyond it more is no better, so that one term cannot be run up without end."""
SUBSTANCE_WORDS = 40
"""An answer of fewer words says little."""


@config
class Weights:
    """What a full unit of each term is worth."""

    check: NonNegativeFloat
    relevance: NonNegativeFloat
    pmi: NonNegativeFloat
    finished: NonNegativeFloat
    substance: NonNegativeFloat
    repetition: NonNegativeFloat
    echo: NonNegativeFloat


@config
class EmbeddedRanker:
    scalar: ClassVar[bool] = True

    name: Free[str]
    weights: Weights
    tau: PositiveFloat
    """Score difference at which the better answer wins with probability 0.73."""
    pmi_length_power: Share
    """1: mean over tokens, prefers short answers; 0: sum, prefers long ones."""
    frozen_model: Stage
    """The model of the PMI term."""
    embedding_package: str
    """Installed package that carries the sentence-embedding checkpoint in its folder `model/`."""
    precision: Literal["float32", "bfloat16"]
    batch_prompts: Free[PositiveInt]
    """Prompts between two saves."""
    pmi_batch_prompts: Free[PositiveInt]
    """Prompts whose answers are scored side by side."""
    device: Free[str]

    @property
    def models(self) -> tuple[Stage, ...]:
        return (self.frozen_model,)

    def open(self, models: tuple[Path, ...]) -> Judge:
        from src.ranking.signals import Pmi, Relevance

        pmi = Pmi(models[0], self.precision, self.pmi_length_power, self.pmi_batch_prompts, self.device)
        return _Judge(self, Relevance(self.embedding_package, self.device), pmi)


class _Judge:
    def __init__(self, ranker: EmbeddedRanker, relevance: Relevance, pmi: Pmi) -> None:
        self.ranker, self.relevance, self.pmi = ranker, relevance, pmi

    def rank(self, rows: list[Row]) -> list[Row]:
        pmi = self.pmi(rows)
        relevance = self.relevance(rows)
        return [self._row(row, {"relevance": relevance[i], "pmi": pmi[i]}) for i, row in enumerate(rows)]

    def _row(self, row: Row, terms: dict[str, list[float]]) -> Row:
        prompt, texts = prompt_text(row), [answer["text"] for answer in row["responses"]]
        verdicts = [checks.verdicts(json.loads(row["checks"]), text) for text in texts]
        terms = terms | {
            "check": [float(np.mean(v)) if v else 0.0 for v in verdicts],
            "finished": [float(answer["finish_reason"] == "stop") for answer in row["responses"]],
            "substance": [min(1.0, len(text.split()) / SUBSTANCE_WORDS) for text in texts],
            "repetition": [repetition(text) for text in texts],
            "echo": [echo(prompt, text) for text in texts],
        }
        return {
            "logits": None,
            "scores": (self._score(terms) / self.ranker.tau).tolist(),
            "truncated": [False] * len(texts),
            "terms": [{"name": name, "values": values} for name, values in sorted(terms.items())],
        }

    def _score(self, terms: dict[str, list[float]]) -> np.ndarray:
        term = {name: np.asarray(values) for name, values in terms.items()}
        w = self.ranker.weights
        return (
            w.check * term["check"]
            + w.relevance * term["relevance"]
            + w.pmi * term["pmi"].clip(*PMI_RANGE)
            + w.finished * term["finished"]
            + w.substance * term["substance"]
            - w.repetition * term["repetition"]
            - w.echo * term["echo"]
        )


def prompt_text(row: Row) -> str:
    """What the user said last."""
    return next(m["content"] for m in reversed(row["messages"]) if m["role"] == "user")
