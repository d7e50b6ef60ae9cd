"""Policies as checkpoint folders: load model and tokenizer, render a chat into token ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from src.config import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Precision = Literal["float32", "bfloat16"]
Messages = list[dict[str, str]]
_SENTINEL = "\ue000{}\ue001"  # private-use characters; no template or vocabulary gives them a meaning


def load_policy(folder: Path, precision: Precision, device: str, attention: str | None = None) -> PreTrainedModel:
    """A causal LM in evaluation mode. `attention` None lets transformers choose what the architecture allows."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, precision),
        attn_implementation=attention,
        use_safetensors=True,
        local_files_only=True,
    )
    return model.to(device).eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer. Raises UserError when it has no chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.chat_template:
        raise UserError(f"{folder}: the tokenizer has no chat template; add chat_template.jinja")
    return tokenizer


def stop_ids(model: PreTrainedModel) -> set[int]:
    """Token ids that end an answer, from the generation config."""
    ids = model.generation_config.eos_token_id if model.generation_config else None
    if ids is None:
        raise UserError(f"{model.name_or_path}: generation_config.json names no eos_token_id")
    return set(ids) if isinstance(ids, list) else {int(ids)}


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of the chat up to where the answer begins.

    Special-token text inside a message becomes ordinary text tokens, so a prompt cannot forge a turn. Everything
    else is tokenised exactly as `apply_chat_template(tokenize=True)` would.
    Raises UserError when the template refuses the messages (a system turn for Gemma-2, say).
    """
    specials = _specials(tokenizer)
    hidden = [m | {"content": _hide(m["content"], specials)} for m in messages]
    ids: list[int] = []
    for text, forged in _split(_apply(tokenizer, hidden), specials):
        ids += _encode(tokenizer, text, split_special_tokens=forged)
    return ids


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        roles = "/".join(m["role"] for m in messages)
        raise UserError(f"{tokenizer.name_or_path}: its chat template refuses {roles}: {error}") from None


def _specials(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Special-token strings, longest first so that none hides inside another."""
    added = tokenizer.added_tokens_decoder.values()
    return sorted({t.content for t in added if t.special}, key=lambda s: (-len(s), s))


def _hide(content: str, specials: list[str]) -> str:
    for index, special in enumerate(specials):
        content = content.replace(special, _SENTINEL.format(index))
    return content


def _split(rendered: str, specials: list[str]) -> list[tuple[str, bool]]:
    """Pieces of the rendered chat; True marks special-token text that came from a message."""
    pieces: list[tuple[str, bool]] = [(rendered, False)]
    for index, special in enumerate(specials):
        sentinel = _SENTINEL.format(index)
        pieces = [part for piece in pieces for part in _cut(piece, sentinel, special)]
    return [(text, forged) for text, forged in pieces if text]


def _cut(piece: tuple[str, bool], sentinel: str, special: str) -> list[tuple[str, bool]]:
    text, forged = piece
    if forged or sentinel not in text:
        return [piece]
    parts: list[tuple[str, bool]] = []
    for part in text.split(sentinel):
        parts += [(part, False), (special, True)]
    return parts[:-1]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False, **options)["input_ids"]
