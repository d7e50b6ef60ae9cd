"""A judge that shares no model with the embedded ranker, and no instruction that training rewards.

score = kept * (share kept of the prompt's instructions whose kinds no training prompt has)
      + relevance * cos(prompt, answer)          averaged token embeddings
      + likelihood * log p(y|x) / tokens         nats, under a language model of another family, cut to a range
P(y > y') = sigma((score - score') / tau).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from src.data import checks
from src.kernel.artifact import Takes
from src.kernel.config import Device, Free, Range, config
from src.kernel.record import package_folder, package_version
from src.kernel.rows import Row, last_user_message
from src.modeling.checkpoints import PublishedModel
from src.modeling.policy import Precision, load_policy, loading, text_ids
from src.ranking.stage import Ranker, in_batches, listed, weighted

WORDLLAMA = "wordllama"
"""Package with token embeddings, distilled from those of Llama-2-70B and others; its code is never run."""
WEIGHTS, TOKENIZER = "weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json"


@config
class Signals:
    """Points of a full unit of each signal."""

    kept: NonNegativeFloat
    relevance: NonNegativeFloat
    likelihood: NonNegativeFloat


@config
class IndependentRanker(Ranker):
    scalar: ClassVar[bool] = True

    weights: Signals
    tau: PositiveFloat
    """Score difference at which the better answer wins with probability 0.73."""
    likelihood_range: Range
    """Nats per token that count. Whoever is likelier repeats itself. An empty answer gets the lower end."""
    language_model: PublishedModel
    """A base model; it reads the message, an empty line and the answer."""
    precision: Precision
    batch_prompts: Free[PositiveInt]
    """Prompts between two saves, whose answers are scored side by side."""
    device: Free[Device]

    @property
    def models(self) -> tuple[PublishedModel, ...]:
        return (self.language_model,)

    def takes(self) -> Takes:
        return Takes(f"{self.place}.device", cuda=self.device == "cuda")

    def source_version(self) -> str:
        return package_version(WORDLLAMA, self.place)

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        likelihood = Likelihood(models[0], self.precision, self.device, self.likelihood_range)
        embedding = TokenEmbedding()

        def rank_batch(batch: list[Row]) -> list[Row]:
            return [self._rank(*each, embedding) for each in zip(batch, likelihood(batch), strict=True)]

        return in_batches(rank_batch, rows, self.batch_prompts, work)

    def _rank(self, row: Row, likelihoods: list[float], embedding: TokenEmbedding) -> Row:
        texts, asked = [answer["text"] for answer in row["responses"]], embedding(last_user_message(row))
        unseen = [check for check in json.loads(row["checks"]) if check["kind"] in checks.HELD_OUT_KINDS]
        signals = {
            "kept": [float(np.mean(checks.verdicts(unseen, text))) if unseen else 0.0 for text in texts],
            "relevance": [float(asked @ embedding(text)) for text in texts],
            "likelihood": likelihoods,
        }
        whole = {"truncated": [False] * len(texts), "prompt_truncated": False}
        return weighted(vars(self.weights), signals, self.tau) | whole | listed(signals)


class TokenEmbedding:
    """The mean of the embeddings of a text's tokens, of length 1; zeros for a text without tokens."""

    def __init__(self) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        folder = package_folder(WORDLLAMA, "ranker")
        self.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self.tokenizer.no_truncation()
        (self.table,) = load_file(folder / WEIGHTS).values()  # (token, width)

    def __call__(self, text: str) -> np.ndarray:
        ids = self.tokenizer.encode(text.strip(), add_special_tokens=False).ids
        vector = self.table[ids].astype(np.float64).sum(0)
        return vector / (np.linalg.norm(vector) or 1.0)


class Likelihood:
    """log p(y|x) / tokens, nats, cut to `limits`; their lower end for an empty answer."""

    def __init__(self, folder: Path, precision: Precision, device: Device, limits: tuple[float, float]) -> None:
        from transformers import AutoTokenizer

        with loading(folder, "tokenizer"):
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.model, self.limits = load_policy(folder, precision, device), limits

    def __call__(self, rows: list[Row]) -> list[list[float]]:
        from src.modeling.logps import prefix_shared_logps

        prompts = ["".join(f"{message['content']}\n\n" for message in row["messages"]) for row in rows]
        answers = [[text_ids(self.tokenizer, answer["text"]) for answer in row["responses"]] for row in rows]
        sums = prefix_shared_logps(self.model, self.tokenizer(prompts)["input_ids"], answers)
        low, high = self.limits
        return [
            [min(max(logp / len(ids), low), high) if ids else low for logp, ids in zip(*of_row, strict=True)]
            for of_row in zip(sums, answers, strict=True)
        ]
