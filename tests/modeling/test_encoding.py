"""Answers that came as text in the policy's tokens: as the template would have them, one end, no forged token."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import conftest
import pytest
from conftest import CHATML, INST, build_tokenizer, inputs
from hypothesis import example, given, settings
from hypothesis import strategies as st

from src.kernel.config import UserError
from src.modeling.policy import answer_ids, load_tokenizer, render, stop_ids, text_ids, turn_end

GEMMA = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' "
    "else message['role']) + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI = (  # a turn has an end, and the whole chat another
    "{% for message in messages %}{{ '<start_of_turn>' + message['content'] + '<end_of_turn>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>' }}{% else %}{{ eos_token }}{% endif %}"
)
ENDLESS = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
THINKING = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
TURN = ("<start_of_turn>", "<end_of_turn>")
KINDS = {
    "chatml": (CHATML, "<|im_start|>", "<|im_end|>", ("<|im_end|>",)),
    "inst": (INST, "<s>", "</s>", ("</s>",)),
    "gemma": (GEMMA, "<bos>", "<eos>", ("<eos>", "<end_of_turn>")),
    "phi": (PHI, "<s>", "</s>", ("</s>", "<end_of_turn>")),
    "endless": (ENDLESS, "<s>", "</s>", ("</s>",)),
    "thinking": (THINKING, "<|im_start|>", "<|im_end|>", ("<|im_end|>",)),
}
END = {"gemma": "<end_of_turn>", "phi": "<end_of_turn>", "chatml": "<|im_end|>", "thinking": "<|im_end|>"}
CHAT = [{"role": "user", "content": "what is it"}]


@lru_cache
def tokenizer(kind: str) -> tuple[Any, set[int]]:
    """A tiny tokenizer, and the ids at which its policy stops."""
    template, bos, eos, stops = KINDS[kind]
    folder = Path(mkdtemp())
    build_tokenizer(folder, template, bos, eos)
    found = load_tokenizer(folder)
    found.add_special_tokens({"additional_special_tokens": [s for s in TURN if s in template]})
    return found, {int(found.convert_tokens_to_ids(stop)) for stop in stops}


texts = st.text(st.sampled_from("ab .\n'é日🙂]<|/>"), max_size=12) | st.lists(
    st.sampled_from(["</s>", "<s>", "<|im_end|>", "<|im_start|>", "<eos>", "<end_of_turn>", " the", "word ", "\n"]),
    max_size=5,
).map("".join)


@given(kind=st.sampled_from(list(KINDS)), text=texts, question=texts, finished=st.booleans())
@settings(max_examples=inputs(100))
@example(kind="gemma", text="", question="hi", finished=True)
@example(kind="inst", text=" leading", question="</s>", finished=False)
def test_an_answer_is_its_text_and_one_end(kind: str, text: str, question: str, finished: bool) -> None:
    """Whatever it says: ordinary tokens that spell it, then the end of the turn where it has one."""
    own, stops = tokenizer(kind)
    chat = [{"role": "user", "content": question}]
    ids = answer_ids(own, chat, text, stops, finished)
    special = {token for token, added in own.added_tokens_decoder.items() if added.special}
    said = ids[:-1] if finished else ids
    assert not special & set(said)
    assert not finished or ids[-1] == own.convert_tokens_to_ids(END.get(kind, "</s>")) == turn_end(own, stops)
    spelled = own.decode(said, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert spelled == (text.strip() if kind == "gemma" else text)


@given(kind=st.sampled_from(["chatml", "inst", "gemma", "phi"]), text=texts, turns=st.integers(0, 2))
@settings(max_examples=inputs(60))
def test_prompt_and_answer_are_the_chat_as_the_template_has_it(kind: str, text: str, turns: int) -> None:
    own, stops = tokenizer(kind)
    chat = [*CHAT, {"role": "assistant", "content": "that"}] * turns + CHAT
    whole = render(own, [*chat, {"role": "assistant", "content": text}], add_generation_prompt=False)
    read = render(own, chat) + answer_ids(own, chat, text, stops, finished=True)
    assert whole[: len(read)] == read


def test_tokens_that_cross_the_border_leave_the_prompt_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`]!` is one token of this tokenizer: the chat as a whole has it, the prompt that the policy reads ends in `]`."""
    monkeypatch.setattr(conftest, "TEXT", "]!!! " * 40)
    build_tokenizer(tmp_path, INST, "<s>", "</s>")
    own = load_tokenizer(tmp_path)
    whole = render(own, [*CHAT, {"role": "assistant", "content": "!!!"}], add_generation_prompt=False)
    prompt, end = render(own, CHAT), own.eos_token_id
    assert whole[: len(prompt)] != prompt
    assert answer_ids(own, CHAT, "!!!", {end}, True) == [*text_ids(own, "!!!"), end]
    assert answer_ids(own, CHAT, "!!!", {end}, False) == text_ids(own, "!!!")


def test_stop_ids_are_those_of_the_checkpoint(llama: Path, tmp_path: Path) -> None:
    assert stop_ids(llama) == {load_tokenizer(llama).eos_token_id}
    settings = json.loads((llama / "config.json").read_text()) | {"eos_token_id": [4, 6]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert stop_ids(tmp_path) == {4, 6}, "there is no generation config"
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 5]}')
    assert stop_ids(tmp_path) == {3, 5}
    (tmp_path / "generation_config.json").write_text("{}")
    with pytest.raises(UserError, match="names no eos_token_id"):
        stop_ids(tmp_path)
    with pytest.raises(UserError, match="no model that can be loaded"):
        stop_ids(tmp_path / "nowhere")
