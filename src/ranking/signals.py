"""The two model-based terms of the embedded ranker."""

from __future__ import annotations

from pathlib import Path

import torch

from src.kernel.config import Device
from src.kernel.rows import Row, last_user_message
from src.modeling.model import Precision, load_policy, load_tokenizer, render
from src.modeling.packages import package_folder
from src.modeling.prefix_logps import prefix_shared_logps


class Relevance:
    """cos(prompt, answer) of mean-pooled sentence embeddings; an empty answer gets 0."""

    def __init__(self, package: str, max_tokens: int, device: Device) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = package_folder(package, "ranker.embedding_package") / "model"
        self.max_tokens = max_tokens
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
        self.model = model.eval().to(device)

    def __call__(self, rows: list[Row]) -> list[list[float]]:
        prompts = self._embed([last_user_message(row) for row in rows])
        texts = [answer["text"] for row in rows for answer in row["responses"]]
        owner = torch.tensor([i for i, row in enumerate(rows) for _ in row["responses"]])
        cosines = (self._embed(texts) * prompts[owner]).sum(1).tolist()
        kept = iter([c if text.strip() else 0.0 for c, text in zip(cosines, texts, strict=True)])
        return [[next(kept) for _ in row["responses"]] for row in rows]

    def truncated(self, texts: list[str]) -> list[bool]:
        """Whether the model reads only the beginning."""
        return [len(ids) > self.max_tokens for ids in self.tokenizer(texts)["input_ids"]]

    @torch.inference_mode()
    def _embed(self, texts: list[str], batch: int = 64) -> torch.Tensor:
        """Unit vectors (text, width), in the order given; batches of similar length."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = torch.empty(len(texts), self.model.config.hidden_size)
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            tokens = self.tokenizer(
                [texts[i] for i in some], padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            ).to(self.model.device)
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
        self.length_power = length_power
        self.batch_prompts = batch_prompts

    def __call__(self, rows: list[Row]) -> list[list[float]]:
        order = sorted(range(len(rows)), key=lambda i: sum(len(a["token_ids"]) for a in rows[i]["responses"]))
        found: dict[int, list[float]] = {}
        for start in range(0, len(order), self.batch_prompts):
            some = order[start : start + self.batch_prompts]
            found |= dict(zip(some, self._batch([rows[i] for i in some]), strict=True))
        return [found[i] for i in range(len(rows))]

    def _batch(self, rows: list[Row]) -> list[list[float]]:
        prompts = [render(self.tokenizer, row["messages"]) for row in rows]
        answers = [[self._ids(answer["text"]) for answer in row["responses"]] for row in rows]
        given = prefix_shared_logps(self.model, prompts, answers)
        alone = iter(prefix_shared_logps(self.model, [self.empty], [[a for some in answers for a in some]])[0])
        return [
            [(g - next(alone)) / max(1, len(a)) ** self.length_power for g, a in zip(gs, some, strict=True)]
            for gs, some in zip(given, answers, strict=True)
        ]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
