"""Reward models: one score per answer, of a chat in the template of the model's own tokenizer.

P(y_i > y_j) = sigma((s_i - s_j) / tau).

A chat is a forward pass of its own, without padding: its score depends on nothing else.
"""

from __future__ import annotations

import json
from array import array
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from src.kernel.artifact import Takes
from src.kernel.cells import cell_key
from src.kernel.config import Free, UserError, config
from src.kernel.rows import Row
from src.modeling.checkpoints import PublishedModel
from src.modeling.policy import check_files, check_tokenizer, check_vocabulary, load_tokenizer, loading, render
from src.ranking.batching import Item, NumberType, Texts, Work, work_off
from src.ranking.stage import Ranker


@config
class RewardModel(Ranker):
    scalar: ClassVar[bool] = True
    code_version: ClassVar[int] = 1

    checkpoint: PublishedModel
    """Brings a model for AutoModelForSequenceClassification, with a chat template."""
    output: Literal["logits", "score"]
    """Output of the model that holds the score: `logits` of one label, or `score` (ArmoRM)."""
    max_tokens: PositiveInt
    """Tokens of a chat that are read from its beginning; the answer of a longer one counts as truncated."""
    trust_remote_code: bool
    """Run the Python files that lie in the checkpoint."""
    precision: NumberType
    work: Free[Work]

    @property
    def models(self) -> tuple[PublishedModel, ...]:
        return (self.checkpoint,)

    def takes(self) -> Takes:
        return self.work.takes()

    def check_models(self, models: tuple[Path, ...]) -> None:
        """Raise UserError for what config and tokenizer tell of a model that gives no score."""
        (folder,) = models
        settings = check_files(folder, self.max_tokens, "ranker.max_tokens")
        if "auto_map" in settings and not self.trust_remote_code:
            bring = "src.modeling.checkpoints.CheckpointWithCode, as ranker=armorm does"
            remedy = f"read them, then set it to true and bring them with {bring}"
            raise UserError(f"ranker.trust_remote_code: {self.name} runs Python files of its own; {remedy}")
        check_tokenizer(folder, load_tokenizer(folder))
        kinds = [str(kind) for kind in settings.get("architectures") or []]
        if any(kind.endswith("ForCausalLM") for kind in kinds):
            what = f"is a {kinds[0]}, which has no head for scores"
            raise UserError(f"ranker.checkpoint: {folder} {what}; a reward model has one; name another")
        labels = len(settings.get("id2label") or []) or 2  # transformers' own number, which it does not write
        if self.output == "logits" and labels > 1:
            raise UserError(f"ranker.checkpoint: {folder} has {labels} labels; a reward model has one; name another")
        if self.output == "score" and "auto_map" not in settings:  # no class of transformers has one
            raise UserError(f"ranker.output: the model has no {self.output}; say logits")

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        self.check_models(models)
        (folder,) = models
        tokenizer = load_tokenizer(folder)
        items: list[Item] = []
        keys: list[list[str]] = []
        ranked: list[Row] = []
        for row in rows:
            messages, texts = row["messages"], [answer["text"] for answer in row["responses"]]
            chats = [[*messages, {"role": "assistant", "content": text}] for text in texts]
            ids = [render(tokenizer, chat, add_generation_prompt=False) for chat in chats]
            keys.append([cell_key(json.dumps(messages), text) for text in texts])
            for k, (key, chat) in enumerate(zip(keys[-1], ids, strict=True), 1):
                name = f"prompt {row['prompt_id']}, answer {k}"
                items.append(Item(key, (array("i", chat[: self.max_tokens]),), name))
            cut = [len(chat) > self.max_tokens for chat in ids]
            prompt_cut = len(render(tokenizer, messages)) >= self.max_tokens
            ranked.append({"logits": None, "truncated": cut, "prompt_truncated": prompt_cut, "terms": None})
        check_vocabulary(folder, (max(item.texts[0], default=0) for item in items))
        opener = partial(RewardScorer, folder, self.output, self.trust_remote_code, self.precision)
        scores = work_off(opener, items, self.work, work, "answer")
        return [row | {"scores": [scores[key] for key in some]} for row, some in zip(ranked, keys, strict=True)]


class RewardScorer:
    """The loaded model; it returns one score per chat."""

    def __init__(self, folder: Path, output: str, trust_remote_code: bool, precision: NumberType, work: Work) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        from src.modeling.policy import SAFE, whole

        self.output, self.device = output, work.device
        supply_missing_names()
        with loading(folder, "reward model"):
            loaded = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=getattr(torch, precision), trust_remote_code=trust_remote_code, **SAFE
            )
            self.model: Any = whole(folder, *loaded).to(work.device).eval()

    def __call__(self, items: list[Texts]) -> list[float]:
        import torch

        scores: list[float] = []
        with torch.inference_mode():
            for (ids,) in items:
                output = self.model(input_ids=torch.tensor([ids.tolist()], device=self.device))
                scores.append(output[self.output].float().item())
        return scores


def supply_missing_names() -> None:
    """Give transformers 5 a documentation string that it no longer has and ArmoRM's code imports."""
    from transformers.models.llama import modeling_llama

    if not hasattr(modeling_llama, "LLAMA_INPUTS_DOCSTRING"):
        modeling_llama.LLAMA_INPUTS_DOCSTRING = ""  # pyright: ignore[reportAttributeAccessIssue]
