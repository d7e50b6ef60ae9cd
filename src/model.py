"""Policies as checkpoint folders: load model and tokenizer, render a chat into token ids."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from src.config import Device, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Precision = Literal["float32", "bfloat16"]
Attention = Literal["eager", "sdpa"]
AttentionKind = Literal["segments", "flex"]
"""Of packed rows; see src/packed_attention.py."""
Messages = list[dict[str, str]]
PACKABLE = ("llama", "mistral", "gemma2")
"""Architectures whose packed result is compared with the padded one in the tests."""
ROPE_OF_A_ROW = ("dynamic", "longrope")
"""Rotary embeddings that depend on the longest position of a row, so on a neighbour."""


def load_policy(
    folder: Path, precision: Precision, device: Device, attention: Attention | None = None
) -> PreTrainedModel:
    """A causal LM in evaluation mode. `attention` None lets transformers choose what the architecture allows."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, precision),
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{folder}: no model that can be loaded: {first_line(error)}") from error
    return model.to(device).eval()


def refuse_unpackable(settings: dict[str, Any]) -> None:
    """Raises UserError for a model (`config.json`, or its settings in transformers) whose packed rows are not exact."""
    kind = settings.get("model_type")
    if kind not in PACKABLE:
        raise UserError(f"model: {kind} is not supported; supported: {', '.join(PACKABLE)}")
    if settings.get("attention_dropout"):
        raise UserError("model: config.json asks for attention dropout; set attention_dropout to 0")
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type"))
    if rope_type in ROPE_OF_A_ROW:
        raise UserError(f"model: config.json asks for {rope_type} rotary embeddings, which packed rows cannot have")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer. Raises UserError when it has no chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{folder}: no tokenizer that can be loaded: {first_line(error)}") from error
    if not tokenizer.chat_template:
        raise UserError(f"{folder}: the tokenizer has no chat template; add chat_template.jinja")
    return tokenizer


def first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def stop_ids(folder: Path) -> set[int]:
    """Token ids that end an answer, from a checkpoint's generation config, or its config where it has none."""
    from transformers import AutoConfig, GenerationConfig

    try:
        settings = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        try:
            settings = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder, local_files_only=True))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: no model that can be loaded: {first_line(error)}") from error
    ids = settings.eos_token_id
    if ids is None:
        raise UserError(f"{folder}: generation_config.json names no eos_token_id")
    return set(ids) if isinstance(ids, list) else {int(ids)}


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
    """Token ids of the chat up to where the answer begins, or without `add_generation_prompt` of a whole chat.

    Special-token text inside a message becomes ordinary text tokens, so a prompt cannot forge a turn. Chats without any
    are tokenised exactly as `apply_chat_template(tokenize=True)` does.
    Raises UserError when the template refuses the messages (a system turn for Gemma-2, say).
    """
    specials = _specials(tokenizer)
    marks = _unused_characters(messages)
    hidden = [m | {"content": _hide(m["content"], specials, marks)} for m in messages]
    text = chat_text(tokenizer, hidden, add_generation_prompt)
    if marks[0] not in text:
        return _encode(tokenizer, text)
    ids: list[int] = []
    for piece in re.split("(" + "|".join(map(re.escape, specials)) + ")", text):
        if piece in specials:  # the template's own: those of the messages are hidden
            ids.append(int(tokenizer.convert_tokens_to_ids(piece)))  # pyright: ignore[reportArgumentType]
        elif piece:
            ids += _encode(tokenizer, _restore(piece, specials, marks), split_special_tokens=True)
    return ids


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: Messages, add_generation_prompt: bool = True) -> str:
    """The chat in the tokenizer's template. Raises UserError when the template refuses the messages."""
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
    except TemplateError as error:
        roles = "/".join(m["role"] for m in messages)
        raise UserError(f"{tokenizer.name_or_path}: its chat template refuses {roles}: {error}") from None


def _specials(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Special-token strings, longest first so that none hides inside another."""
    added = tokenizer.added_tokens_decoder.values()
    return sorted({t.content for t in added if t.special}, key=lambda s: (-len(s), s))


def _unused_characters(messages: Messages) -> tuple[str, str]:
    """Two private-use characters that no message contains: they open and close the number of a hidden special token."""
    used = "".join(m["content"] for m in messages)
    free = (c for c in map(chr, range(0xE000, 0xF900)) if c not in used)
    return next(free), next(free)


def _hide(content: str, specials: list[str], marks: tuple[str, str]) -> str:
    for index, special in enumerate(specials):
        content = content.replace(special, f"{index}".join(marks))
    return content


def _restore(content: str, specials: list[str], marks: tuple[str, str]) -> str:
    for index, special in enumerate(specials):
        content = content.replace(f"{index}".join(marks), special)
    return content


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False, **options)["input_ids"]
