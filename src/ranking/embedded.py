"""The embedded ranker: a real preference signal that needs no download.

score = check * (share of the prompt's checkable instructions kept)
      + relevance * cos(prompt, answer)           small sentence-embedding model
      + pmi * (log p(y|x) - log p(y)) / tokens ** pmi_length_power          nats, under a frozen model
      + finished * [the answer ended by itself] + substance * min(1, words / substance_words)
      - repetition * (share of repeated word trigrams) - echo * (share of trigrams copied from the prompt)
P(y > y') = sigma((score - score') / tau).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from src.data import checks
from src.data.text_quality import echo, repetition
from src.kernel.artifact import Stage
from src.kernel.config import Device, Free, Label, Share, UserError, config
from src.kernel.rows import Row, last_user_message
from src.modeling.model import Precision, check_tokenizer, load_tokenizer, read_settings
from src.modeling.packages import package_folder, package_version
from src.ranking.stage import RANKER, in_batches

if TYPE_CHECKING:
    from src.ranking.signals import Pmi, Relevance

READ = "max_position_embeddings"
"""In config.json: the most tokens that a model reads."""


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

    name: Free[Label]
    place: Free[str] = RANKER
    """In the config, for messages."""
    weights: Weights
    tau: PositiveFloat
    """Score difference at which the better answer wins with probability 0.73."""
    pmi_length_power: Share
    """1: mean over tokens, prefers short answers; 0: sum, prefers long ones."""
    pmi_range: Annotated[tuple[float, float], Field(strict=False)]
    """The PMI term is cut to it, so that it cannot be run up without end."""
    substance_words: PositiveInt
    """Words of an answer that says enough."""
    relevance_tokens: PositiveInt
    """Tokens of a text that the embedding model reads; a longer answer counts as truncated."""
    frozen_model: Stage
    """The model of the PMI term."""
    embedding_package: str
    """Installed package that carries the sentence-embedding checkpoint in its folder `model/`."""
    precision: Precision
    batch_prompts: Free[PositiveInt]
    """Prompts between two saves."""
    pmi_batch_prompts: Free[PositiveInt]
    """Prompts whose answers are scored side by side."""
    device: Free[Device]

    def __post_init__(self) -> None:
        if self.pmi_range[0] >= self.pmi_range[1]:
            raise ValueError(f"pmi_range: {list(self.pmi_range)} is no range; the lower bound comes first")

    @property
    def models(self) -> tuple[Stage, ...]:
        return (self.frozen_model,)

    def source_version(self) -> str:
        return package_version(self.embedding_package, f"{self.place}.embedding_package")

    def check_models(self, models: tuple[Path, ...]) -> None:
        """Raises UserError for a frozen model that cannot read chats, and where more is to be embedded than can be."""
        (frozen,) = models
        check_tokenizer(frozen, load_tokenizer(frozen))
        limit = read_settings(package_folder(self.embedding_package, "ranker.embedding_package") / "model").get(READ)
        if isinstance(limit, int) and self.relevance_tokens > limit:
            what = f"{self.relevance_tokens}, but {self.embedding_package} reads at most {limit}"
            raise UserError(f"ranker.relevance_tokens: {what}; lower it")

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        from src.ranking.signals import Pmi, Relevance

        pmi = Pmi(models[0], self.precision, self.pmi_length_power, self.pmi_batch_prompts, self.device)
        relevance = Relevance(self.embedding_package, self.relevance_tokens, self.device)
        return in_batches(_Judge(self, relevance, pmi).rank, rows, self.batch_prompts, work)


class _Judge:
    def __init__(self, ranker: EmbeddedRanker, relevance: Relevance, pmi: Pmi) -> None:
        self.ranker, self.relevance, self.pmi = ranker, relevance, pmi

    def rank(self, rows: list[Row]) -> list[Row]:
        pmi = self.pmi(rows)
        relevance = self.relevance(rows)
        return [self._row(row, {"relevance": relevance[i], "pmi": pmi[i]}) for i, row in enumerate(rows)]

    def _row(self, row: Row, terms: dict[str, list[float]]) -> Row:
        prompt, texts = last_user_message(row), [answer["text"] for answer in row["responses"]]
        verdicts = [checks.verdicts(json.loads(row["checks"]), text) for text in texts]
        terms = terms | {
            "check": [float(np.mean(v)) if v else 0.0 for v in verdicts],
            "finished": [float(answer["finish_reason"] == "stop") for answer in row["responses"]],
            "substance": [min(1.0, len(text.split()) / self.ranker.substance_words) for text in texts],
            "repetition": [repetition(text) for text in texts],
            "echo": [echo(prompt, text) for text in texts],
        }
        return {
            "logits": None,
            "scores": (self._score(terms) / self.ranker.tau).tolist(),
            "truncated": self.relevance.truncated(texts),
            "prompt_truncated": self.relevance.truncated([prompt])[0],
            "terms": [{"name": name, "values": values} for name, values in sorted(terms.items())],
        }

    def _score(self, terms: dict[str, list[float]]) -> np.ndarray:
        term = {name: np.asarray(values) for name, values in terms.items()}
        w = self.ranker.weights
        return (
            w.check * term["check"]
            + w.relevance * term["relevance"]
            + w.pmi * term["pmi"].clip(*self.ranker.pmi_range)
            + w.finished * term["finished"]
            + w.substance * term["substance"]
            - w.repetition * term["repetition"]
            - w.echo * term["echo"]
        )
