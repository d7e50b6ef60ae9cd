"""Loads policies and tokenizers; turns chats and answers into token ids.

Nothing here imports torch before a model is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from src.kernel.config import Device, UserError
from src.kernel.faults import explain

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Precision = Literal["float32", "bfloat16"]
AttentionKind = Literal["segments", "flex"]
"""Attention of packed rows; see src/modeling/attention.py."""
Messages = list[dict[str, str]]
SAFE: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
"""How weights are loaded: no pickle, nothing from a network, and with a note of what the files lack."""
PROBE = "aardvark 617"
ASKED: Messages = [{"role": "user", "content": PROBE}]
PRIVATE_USE = range(0x100000, 0x10FFFE)
"""Characters of Unicode's last plane, which mean nothing."""
TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*")
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
_MARK = re.compile(r"[<\[]\S+[>\]]")
"""An added token that is a mark, and no word or white space."""
_IN_BRACKETS = re.compile(r"<<?[^\s<>\[\]]+>>?|\[[^\s<>\[\]]+\]")
"""A mark in a chat."""


def load_policy(folder: Path, precision: Precision, device: Device, attention: str | None = None) -> PreTrainedModel:
    """Load a causal LM in evaluation mode. `attention` is eager or sdpa; with None, transformers chooses."""
    import torch
    from transformers import AutoModelForCausalLM

    with loading(folder, "model"):
        options = SAFE | {"dtype": getattr(torch, precision), "attn_implementation": attention}
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options)
    return whole(folder, *loaded).to(device).eval()


def whole(folder: Path, model: Any, info: dict[str, Any]) -> Any:
    """Return a model that was loaded. Raises UserError where its files lack weights: they would be random."""
    if missing := sorted(info["missing_keys"]):
        lacking = f"{len(missing)} of the model's weights, such as {missing[0]}"
        raise UserError(f"{folder}: its files lack {lacking}; is it whole?")
    return model


@contextmanager
def loading(folder: Path, what: str) -> Iterator[None]:
    """Name in one line the model or tokenizer that a library cannot load; a failure of the machine stays itself."""
    try:
        yield
    except Exception as error:  # its files are somebody else's, and so is the code that reads them
        if isinstance(error, UserError) or (not isinstance(error, FileNotFoundError) and explain(error)):
            raise
        raise UserError(f"{folder}: no {what} that can be loaded: {first_line(error)}; is it whole?") from error


def first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the folder's tokenizer. Raises UserError without a chat template, or for one that leaves out the chat."""
    from transformers import AutoTokenizer

    check_chat(folder)
    with loading(folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer(PROBE, add_special_tokens=False)
    _check_said(folder, chat_text(tokenizer, ASKED))
    return tokenizer


def _check_said(folder: Path, text: str) -> None:
    if PROBE not in text:
        raise UserError(f"{folder}: its chat template leaves out what the user says; mend {TEMPLATE}")


def check_chat(folder: Path) -> None:
    """Raise UserError where the files of a checkpoint folder show that it has no tokenizer or no chat template.

    A template that wants more than plain Jinja, or is one of several, is looked at when the tokenizer is loaded.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if not any(next(folder.glob(name), None) for name in TOKENIZERS):
        raise UserError(f"{folder}: no tokenizer that can be loaded: none in it; bring its tokenizer.json too")
    settings = folder / "tokenizer_config.json"
    template: Any = settings.exists() and read_settings(folder, settings.name).get("chat_template")
    if (folder / TEMPLATE).exists():
        template = (folder / TEMPLATE).read_text(errors="replace")
    if not template:
        raise UserError(f"{folder}: the tokenizer has no chat template; add {TEMPLATE} to it, or to a copy of it")
    text = PROBE
    with suppress(Exception):
        plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
        text = plain.render(messages=ASKED, add_generation_prompt=True, bos_token="", eos_token="")
    _check_said(folder, text)


def check_files(folder: Path, tokens: int, key: str, prompts: str = "") -> dict[str, Any]:
    """Return config.json. Raise UserError where files show that a model cannot chat, or reads fewer than `tokens`.

    `key` of the config asks for so many. A model that answers needs a token that ends an answer too; `prompts` is then
    the key of their part of the tokens. Loads no library, so that a plan can ask.
    """
    check_chat(folder)
    if prompts and (folder / GENERATION).exists():
        stop_ids(folder)
    settings = read_settings(folder)
    given = settings.get("max_position_embeddings"), rope_of(settings).get("factor")
    most, factor = (number if isinstance(number, int | float) else 0 for number in given)
    positions = (most or tokens) * max(1, factor)
    if tokens > positions:
        asked, remedy = (f"{tokens} tokens with {prompts}", "either") if prompts else (f"{tokens} tokens", "it")
        raise UserError(f"{key}: {asked}, but {folder} reads at most {positions:.0f}; lower {remedy}")
    return settings


def rope_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what config.json says of rotary embeddings: a dict under one of two names, or their type alone."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    return rope if isinstance(rope, dict) else {"rope_type": rope}


def read_settings(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Return `config.json` of a checkpoint folder. Raises UserError when it is not there or no JSON object."""
    with loading(file := folder / name, "config of a model"):
        return dict(json.loads(file.read_bytes()))


def stop_ids(folder: Path) -> set[int]:
    """Return the token ids that end an answer, from a checkpoint's generation config, else from its config."""
    with loading(folder, "model"):
        if (folder / GENERATION).exists():
            ids = read_settings(folder, GENERATION).get("eos_token_id")
        else:
            from transformers import AutoConfig, GenerationConfig

            model = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            ids = GenerationConfig.from_model_config(model).eos_token_id
        stops = set(map(int, ids if isinstance(ids, list) else [] if ids is None else [ids]))
    if not stops:
        raise UserError(f"{folder}: {GENERATION} names no eos_token_id; add the id that ends an answer")
    check_vocabulary(folder, [min(stops)], GENERATION)  # the model may lack some of several
    return stops


def check_vocabulary(folder: Path, ids: Iterable[int], whose: str = "its tokenizer") -> None:
    """Raise UserError where the model of a checkpoint has no embedding for an id."""
    known = read_settings(folder).get("vocab_size")
    most = max(ids, default=0)
    if isinstance(known, int) and most >= known:
        raise UserError(f"{folder}: {whose} has the token {most}, its model only {known}; are they of one model?")


def check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where the model has no embedding for what the tokenizer makes of text, or of a chat's marks."""
    words = set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder)  # some added ones are unused
    check_vocabulary(folder, words.union(render(tokenizer, ASKED)))


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
    """Return the token ids of the chat up to where the answer begins; without `add_generation_prompt`, of all of it.

    Special-token text inside a message becomes ordinary text tokens, so a prompt cannot forge a turn. Chats without any
    are tokenised exactly as `apply_chat_template(tokenize=True)` does.
    Raises UserError when the template refuses the messages (a system turn for Gemma-2, say).
    """
    specials = _specials(tokenizer)
    # Two private-use characters that no message contains enclose the number of a hidden special token.
    used = set("".join(message["content"] for message in messages))
    free = (character for character in map(chr, PRIVATE_USE) if character not in used)
    marks = (next(free), next(free))
    hidden = []
    for message in messages:
        content = message["content"]
        for index, special in enumerate(specials):
            content = content.replace(special, f"{index}".join(marks))
        hidden.append(message | {"content": content})
    text = chat_text(tokenizer, hidden, add_generation_prompt)
    if marks[0] not in text:
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    ids: list[int] = []
    for piece in re.split("(" + "|".join(map(re.escape, specials)) + ")", text):
        if piece in specials:  # the template's own: those of the messages are hidden
            ids.append(int(tokenizer.convert_tokens_to_ids(piece)))  # pyright: ignore[reportArgumentType]
            continue
        # The hidden texts are put back. The text of an added token that is not special comes in two parts.
        for index, (special, is_special) in enumerate(specials.items()):
            spelled = special if is_special else f"{special[0]}{marks[0]}{special[1:]}"
            piece = piece.replace(f"{index}".join(marks), spelled)
        for part in filter(None, piece.split(marks[0])):
            ids += text_ids(tokenizer, part)
    return ids


def marks_as_text(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """List marks that the chat template writes and no token stands for: whoever spells them can forge a turn.

    They are words in brackets of any kind; not `User:` or `###`, which stand in honest text too.
    """
    answer, system = ({"role": role, "content": PROBE} for role in ("assistant", "system"))
    marks: set[str] = set()
    for chat in (ASKED, [*ASKED, answer, *ASKED], [system, *ASKED]):
        with suppress(UserError):  # not every template takes every turn
            marks |= set(_IN_BRACKETS.findall(chat_text(tokenizer, chat).replace(PROBE, " ")))
    return sorted(marks - _specials(tokenizer).keys())


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: Messages, add_generation_prompt: bool = True) -> str:
    """Write the chat in the tokenizer's template. Raises UserError when the template refuses the messages."""
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
        text.encode()  # half a surrogate pair is no text: a ValueError
        return text
    except Exception as error:  # the template is somebody else's
        roles = "/".join(m["role"] for m in messages)
        why = f"its chat template refuses {roles}: {first_line(error)}"
        remedy = "mend the prompt, or name a model whose template takes it"
        raise UserError(f"{tokenizer.name_or_path}: {why}; {remedy}") from None


def _specials(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    """Map special tokens, and added ones that the chat template writes as its marks, to whether they are special.

    The longest come first, so that none hides inside another.
    """
    template, added = str(tokenizer.chat_template), tokenizer.added_tokens_decoder.values()
    marks = {t.content: t.special for t in added if t.special or (_MARK.fullmatch(t.content) and t.content in template)}
    return dict(sorted(marks.items(), key=lambda mark: (-len(mark[0]), mark[0])))


def answer_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str, stops: set[int], finished: bool
) -> list[int]:
    """Encode the answer as the template has it in a chat: after the prompt, up to the stop id that ends its turn.

    That id is left away where the answer was cut off. Special-token text in the answer stays text. Where the template
    renders the prompt otherwise once it is answered, or tokens cross the border, the text is encoded by itself.
    """
    turn = _turn(tokenizer, messages, text, stops)
    if turn is None:
        return text_ids(tokenizer, text) + [turn_end(tokenizer, stops)][:finished]
    return turn if finished else turn[:-1]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a text by itself, nothing added; special-token text stays text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def turn_end(tokenizer: PreTrainedTokenizerBase, stops: set[int]) -> int:
    """Return the stop id with which the template ends an answer, else the tokenizer's EOS where it is one of them."""
    turn = _turn(tokenizer, [{"role": "user", "content": "a"}], "a", stops)
    if turn:
        return turn[-1]
    return tokenizer.eos_token_id if tokenizer.eos_token_id in stops else min(stops)


def _turn(tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str, stops: set[int]) -> list[int] | None:
    """Return the answer's turn with the id that ends it; None where its start cannot be found or it has no such id."""
    prompt = render(tokenizer, messages)
    whole = render(tokenizer, [*messages, {"role": "assistant", "content": text}], add_generation_prompt=False)
    if whole[: len(prompt)] != prompt:
        return None
    # An ordinary token may be a stop id too; only the template's own special ones cannot be part of the text.
    ends = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special} & stops
    rest = whole[len(prompt) :]
    end = next((i for i, token in enumerate(rest) if token in ends), None)
    return None if end is None else rest[: end + 1]
