"""Reward models: one score an answer, of a chat in the template of the model's own tokenizer.

P(y_i > y_j) = sigma((s_i - s_j) / tau).

A chat is a forward pass of its own, without padding: its score depends on nothing else.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import PositiveInt

from src.kernel.artifact import Stage
from src.kernel.cells import cell_key
from src.kernel.config import Free, Label, UserError, config
from src.kernel.faults import explain
from src.kernel.rows import Row
from src.modeling.policy import check_tokenizer, check_vocabulary, first_line, load_tokenizer, read_settings, render
from src.ranking.batching import Item, NumberType, Queue, Scorer, Texts, Work, work_off

_NAME = "a reward model has one; name another"


@config
class RewardModel:
    scalar: ClassVar[bool] = True
    code_version: ClassVar[int] = 1

    name: Free[Label]
    checkpoint: Stage
    """Brings a model for AutoModelForSequenceClassification, with a chat template."""
    output: Literal["logits", "score"]
    """Where the model has its score: `logits` of one label, or `score` (ArmoRM)."""
    max_tokens: PositiveInt
    """Of a chat; of a longer one the beginning is read, and its answer counts as truncated."""
    trust_remote_code: bool
    """Run the Python files that lie in the checkpoint."""
    precision: NumberType
    work: Free[Work]

    @property
    def models(self) -> tuple[Stage, ...]:
        return (self.checkpoint,)

    def check_models(self, models: tuple[Path, ...]) -> None:
        """Raises UserError for what config and tokenizer tell of a model that gives no score."""
        (folder,) = models
        self._refuse_foreign_code(folder)
        check_tokenizer(folder, load_tokenizer(folder))
        settings = read_settings(folder)
        kinds = [str(kind) for kind in _listed(settings.get("architectures"))]
        if any(kind.endswith("ForCausalLM") for kind in kinds):
            raise UserError(f"ranker.checkpoint: {folder} is a {kinds[0]}, which has no head for scores; {_NAME}")
        labels = len(_listed(settings.get("id2label"))) or 2  # transformers' own number, which it does not write
        if self.output == "logits" and labels > 1:
            raise UserError(f"ranker.checkpoint: {folder} has {labels} labels; {_NAME}")
        if self.output == "score" and "auto_map" not in settings:  # no class of transformers has one
            raise UserError(f"ranker.output: the model has no {self.output}; say logits")

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        self._refuse_foreign_code(models[0])
        tokenizer = load_tokenizer(models[0])
        texts: list[array[int]] = []
        items: dict[str, Item] = {}
        read = [[self._chat(tokenizer, row, answer["text"]) for answer in row["responses"]] for row in rows]
        for row, chats in zip(rows, read, strict=True):
            for k, chat in enumerate(chats, 1):
                if chat.key not in items:
                    items[chat.key] = Item(chat.key, (len(texts),), f"prompt {row['prompt_id']}, answer {k}")
                    texts.append(chat.ids)
        check_vocabulary(models[0], (max(ids, default=0) for ids in texts))
        queue = Queue(texts, list(items.values()))
        opener = _Opener(models[0], self.output, self.trust_remote_code, self.precision)
        scores = work_off(opener, queue, self.work, work, "answer")
        whole = [len(render(tokenizer, row["messages"])) < self.max_tokens for row in rows]
        return [
            {
                "logits": None,
                "scores": [scores[chat.key] for chat in chats],
                "truncated": [chat.truncated for chat in chats],
                "prompt_truncated": not seen,
                "terms": None,
            }
            for chats, seen in zip(read, whole, strict=True)
        ]

    def _chat(self, tokenizer: Any, row: Row, answer: str) -> _Chat:
        messages = [*row["messages"], {"role": "assistant", "content": answer}]
        ids = render(tokenizer, messages, add_generation_prompt=False)
        key = cell_key(json.dumps(row["messages"]), answer)
        return _Chat(key, array("i", ids[: self.max_tokens]), len(ids) > self.max_tokens)

    def _refuse_foreign_code(self, checkpoint: Path) -> None:
        if not (checkpoint / "config.json").is_file():
            raise UserError(f"ranker.checkpoint: {checkpoint} has no config.json")
        if "auto_map" in read_settings(checkpoint) and not self.trust_remote_code:
            raise UserError(
                f"ranker.trust_remote_code: {self.name} runs Python files of its own; read them, then set it to true "
                "and bring them with src.modeling.checkpoints.CheckpointWithCode, as ranker=armorm does"
            )


def _listed(value: Any) -> list[Any]:
    """Lists keys or elements; of another kind, which transformers will not load, none."""
    return list(value) if isinstance(value, dict | list) else []


class _Chat(NamedTuple):
    key: str
    ids: array[int]
    truncated: bool


class _Opener(NamedTuple):
    checkpoint: Path
    output: str
    trust_remote_code: bool
    precision: NumberType

    def __call__(self, work: Work) -> Scorer:
        return _Scores(self, work)


class _Scores:
    def __init__(self, opener: _Opener, work: Work) -> None:
        self.output, self.device = opener.output, work.device
        self.model = _load(opener, work)
        labels = self.model.config.num_labels
        if self.output == "logits" and labels != 1:
            raise UserError(f"ranker.checkpoint: {opener.checkpoint} has {labels} labels; {_NAME}")

    def __call__(self, items: list[Texts]) -> list[float]:
        import torch

        scores: list[float] = []
        with torch.inference_mode():
            for (ids,) in items:
                output = self.model(input_ids=torch.tensor([ids.tolist()], device=self.device))
                score = getattr(output, self.output, None)
                if score is None:
                    raise UserError(f"ranker.output: the model has no {self.output}; say logits")
                scores.append(score.float().item())
        return scores


def _load(opener: _Opener, work: Work) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    try:
        with missing_names():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                opener.checkpoint,
                dtype=getattr(torch, opener.precision),
                trust_remote_code=opener.trust_remote_code,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
            model.to(work.device)
    except Exception as error:  # its files are somebody else's, and so is the code that reads them
        if explain(error) and not isinstance(error, FileNotFoundError):
            raise
        raise UserError(f"ranker.checkpoint: no reward model that can be loaded: {first_line(error)}") from error
    if info["missing_keys"]:  # they would be random
        missing = ", ".join(sorted(info["missing_keys"]))
        raise UserError(f"ranker.checkpoint: {opener.checkpoint} has no weights {missing}; is it whole?")
    return model.eval()


@contextmanager
def missing_names() -> Iterator[None]:
    """Gives transformers 5 a documentation string that it no longer has and ArmoRM's code imports."""
    from transformers.models.llama import modeling_llama

    if hasattr(modeling_llama, "LLAMA_INPUTS_DOCSTRING"):
        yield
        return
    modeling_llama.LLAMA_INPUTS_DOCSTRING = ""  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        del modeling_llama.LLAMA_INPUTS_DOCSTRING  # pyright: ignore[reportAttributeAccessIssue]
