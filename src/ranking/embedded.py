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
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from src.data import checks
from src.kernel.artifact import Takes
from src.kernel.config import Device, Free, Range, Share, UserError, config
from src.kernel.record import package_folder, package_version
from src.kernel.rows import Row, last_user_message
from src.modeling.checkpoints import PublishedModel
from src.modeling.policy import Precision, check_tokenizer, load_policy, load_tokenizer, read_settings, render, text_ids
from src.ranking.stage import Ranker, in_batches, listed, weighted

if TYPE_CHECKING:
    from torch import Tensor


@config
class Weights:
    """Points of a full unit of each term."""

    check: NonNegativeFloat
    relevance: NonNegativeFloat
    pmi: NonNegativeFloat
    finished: NonNegativeFloat
    substance: NonNegativeFloat
    repetition: NonNegativeFloat
    echo: NonNegativeFloat


@config
class EmbeddedRanker(Ranker):
    scalar: ClassVar[bool] = True

    weights: Weights
    tau: PositiveFloat
    """Score difference at which the better answer wins with probability 0.73."""
    pmi_length_power: Share
    """1: mean over tokens, prefers short answers; 0: sum, prefers long ones."""
    pmi_range: Range
    """The PMI term is cut to it, so that it cannot be run up without end."""
    substance_words: PositiveInt
    """Words of an answer that says enough."""
    relevance_tokens: PositiveInt
    """Tokens of a text that the embedding model reads; a longer answer counts as truncated."""
    frozen_model: PublishedModel
    """The model of the PMI term."""
    embedding_package: str
    """Installed package that carries the sentence-embedding checkpoint in its folder `model/`."""
    precision: Precision
    batch_prompts: Free[PositiveInt]
    """Prompts between two saves."""
    pmi_batch_prompts: Free[PositiveInt]
    """Prompts whose answers are scored side by side."""
    device: Free[Device]

    @property
    def models(self) -> tuple[PublishedModel, ...]:
        return (self.frozen_model,)

    def takes(self) -> Takes:
        return Takes(f"{self.place}.device", cuda=self.device == "cuda")

    def source_version(self) -> str:
        return package_version(self.embedding_package, f"{self.place}.embedding_package")

    def check_models(self, models: tuple[Path, ...]) -> None:
        """Raise UserError for a frozen model that cannot read chats, and where more is to be embedded than can be."""
        (frozen,) = models
        check_tokenizer(frozen, load_tokenizer(frozen))
        most = read_settings(self._embedding_model())["max_position_embeddings"]
        if self.relevance_tokens > most:
            what = f"{self.relevance_tokens}, but {self.embedding_package} reads at most {most}"
            raise UserError(f"ranker.relevance_tokens: {what}; lower it")

    def _embedding_model(self) -> Path:
        return package_folder(self.embedding_package, "ranker.embedding_package") / "model"

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        pmi = Pmi(models[0], self.precision, self.pmi_length_power, self.pmi_batch_prompts, self.device)
        relevance = Relevance(self._embedding_model(), self.relevance_tokens, self.device)

        def rank_batch(batch: list[Row]) -> list[Row]:
            return [self._rank(*each, relevance) for each in zip(batch, pmi(batch), relevance(batch), strict=True)]

        return in_batches(rank_batch, rows, self.batch_prompts, work)

    def _rank(self, row: Row, pmi: list[float], cosines: list[float], relevance: Relevance) -> Row:
        """Score the answers to one prompt, whose PMI and cosines are known."""
        prompt, texts = last_user_message(row), [answer["text"] for answer in row["responses"]]
        verdicts = [checks.verdicts(json.loads(row["checks"]), text) for text in texts]
        terms = {
            "check": [float(np.mean(v)) if v else 0.0 for v in verdicts],
            "relevance": cosines,
            "pmi": pmi,
            "finished": [float(answer["finish_reason"] == "stop") for answer in row["responses"]],
            "substance": [min(1.0, len(text.split()) / self.substance_words) for text in texts],
            "repetition": [checks.repetition(text) for text in texts],
            "echo": [checks.echo(prompt, text) for text in texts],
        }
        weights = vars(self.weights) | {"repetition": -self.weights.repetition, "echo": -self.weights.echo}
        summands = terms | {"pmi": np.clip(pmi, *self.pmi_range)}
        cut = {"truncated": relevance.truncated(texts), "prompt_truncated": relevance.truncated([prompt])[0]}
        return weighted(weights, summands, self.tau) | cut | listed(terms)


@config
class ShuffledRanker(EmbeddedRanker):
    """A placebo: the embedded ranker's scores, dealt to the K answers of a prompt by lot. Terms are as they were."""

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        def dealt(row: Row, ranking: Row) -> Row:
            lot = np.random.default_rng(list(row["prompt_id"].encode())).permutation(len(ranking["scores"]))
            return ranking | {"scores": np.take(ranking["scores"], lot).tolist()}

        return [dealt(*each) for each in zip(rows, super().rank(rows, models, work), strict=True)]


class Relevance:
    """cos(prompt, answer) of mean-pooled sentence embeddings; an empty answer gets 0."""

    def __init__(self, folder: Path, max_tokens: int, device: Device) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.max_tokens = max_tokens
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
        self.model = model.eval().to(device)

    def __call__(self, rows: list[Row]) -> list[list[float]]:
        prompts = self._embed([last_user_message(row) for row in rows])
        texts = [answer["text"] for row in rows for answer in row["responses"]]
        owner = [i for i, row in enumerate(rows) for _ in row["responses"]]
        cosines = (self._embed(texts) * prompts[owner]).sum(1).tolist()
        kept = iter([c if text.strip() else 0.0 for c, text in zip(cosines, texts, strict=True)])
        return [[next(kept) for _ in row["responses"]] for row in rows]

    def truncated(self, texts: list[str]) -> list[bool]:
        """Return of each text whether the model reads only its beginning."""
        return [len(ids) > self.max_tokens for ids in self.tokenizer(texts)["input_ids"]]

    def _embed(self, texts: list[str], batch: int = 64) -> Tensor:
        """Return unit vectors (text, width) in the order of the texts, computed in batches of similar length."""
        import torch

        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = torch.empty(len(texts), self.model.config.hidden_size)
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            tokens = self.tokenizer(
                [texts[i] for i in some], padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            ).to(self.model.device)
            with torch.inference_mode():
                hidden = self.model(**tokens).last_hidden_state
                mask = tokens["attention_mask"][..., None]
                vectors[some] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).cpu()
        return vectors


class Pmi:
    """(log p(y|x) - log p(y)) / tokens ** length_power over the answer's text (no EOS); 0 for an empty answer.

    The model reads text with its own tokenizer and template, so it need not be a relative of the policy. p(y) is its
    probability as an answer to an empty message.
    """

    def __init__(
        self, policy: Path, precision: Precision, length_power: float, batch_prompts: int, device: Device
    ) -> None:
        self.tokenizer = load_tokenizer(policy)
        self.model = load_policy(policy, precision, device)
        self.empty = render(self.tokenizer, [{"role": "user", "content": ""}])
        self.length_power, self.batch_prompts = length_power, batch_prompts

    def __call__(self, rows: list[Row]) -> list[list[float]]:
        from src.modeling.logps import prefix_shared_logps

        order = sorted(range(len(rows)), key=lambda i: sum(len(a["token_ids"]) for a in rows[i]["responses"]))
        pmi: list[list[float]] = [[] for _ in rows]
        for start in range(0, len(order), self.batch_prompts):
            some = order[start : start + self.batch_prompts]
            prompts = [render(self.tokenizer, rows[i]["messages"]) for i in some]
            answers = [[text_ids(self.tokenizer, a["text"]) for a in rows[i]["responses"]] for i in some]
            after_prompt = prefix_shared_logps(self.model, prompts, answers)
            flat = [answer for of_row in answers for answer in of_row]
            after_nothing = iter(prefix_shared_logps(self.model, [self.empty], [flat])[0])
            for i, of_prompt, ids in zip(some, after_prompt, answers, strict=True):
                for logp, answer in zip(of_prompt, ids, strict=True):
                    pmi[i].append((logp - next(after_nothing)) / max(1, len(answer)) ** self.length_power)
        return pmi
