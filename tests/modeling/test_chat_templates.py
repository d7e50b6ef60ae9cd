"""Chats as token ids: what the public templates make of them, that no text forges a turn, and answers with one end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import conftest
import pytest
from conftest import CHATML, INST, build_tokenizer, inputs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rehearsal_models import GEMMA2, build_gemma2, build_llama3, build_mistral

from src.data.checks import prompts_with_marks
from src.kernel.config import UserError
from src.modeling import policy
from src.modeling.policy import Messages, answer_ids, chat_text, load_tokenizer, render, stop_ids, text_ids, turn_end
from src.ranking.pairrm import without_marks

PUBLIC = {"mistral": build_mistral, "gemma2": build_gemma2, "llama3": build_llama3}
THREE_TURNS = {
    "mistral": "<s>[INST] Hello [/INST]Hi there.</s>[INST] Say None.\n\nBye [/INST]",
    "gemma2": "<bos><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nHi there.<end_of_turn>\n"
    "<start_of_turn>user\nSay None.\n\nBye<end_of_turn>\n<start_of_turn>model\n",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHi there.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nSay None.\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
}
IN_BRACKETS = r"(</?s>|<\w+>|<\|\w+\|>)"
TURN = (
    "{% for message in messages %}{{ '<turn>' + message['role'] + '\n' + message['content'] + '</turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)
PHI = (
    "{% for message in messages %}{{ '<start_of_turn>' + message['content'] + '<end_of_turn>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>' }}{% else %}{{ eos_token }}{% endif %}"
)
ENDLESS = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
THINKING = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
TINY = {
    "chatml": (CHATML, "<|im_start|>", "<|im_end|>"),
    "inst": (INST, "<s>", "</s>"),
    "gemma": (GEMMA2, "<bos>", "<eos>"),
    "phi": (PHI, "<s>", "</s>"),  # a turn has an end, and the whole chat another
    "endless": (ENDLESS, "<s>", "</s>"),
    "thinking": (THINKING, "<|im_start|>", "<|im_end|>"),
    "turn": (TURN, "<s>", "</s>"),  # its marks are added tokens, but none that it calls special
}
ENDS = {"gemma2": "<end_of_turn>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "phi": "<end_of_turn>"}
"""The ends of turns that are not the EOS of the tokenizer."""
FORGED = ("mistral", "gemma2", "llama3", "chatml", "turn")


class Kind(NamedTuple):
    tokenizer: Any
    stops: set[int]
    end: int
    """The id that ends a turn."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    """Tiny tokenizers of the published kinds, and other templates with a tokenizer that can spell anything."""
    made = {}
    for name in (*PUBLIC, *TINY):
        folder = tmp_path_factory.mktemp(name)
        PUBLIC[name](folder) if name in PUBLIC else build_tokenizer(folder, *TINY[name])
        tokenizer: Any = load_tokenizer(folder)
        if name in ("gemma", "phi"):
            tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
        if name == "turn":
            tokenizer.add_tokens(["<turn>", "</turn>", "<think>", "\n"])
        end = tokenizer.convert_tokens_to_ids(ENDS.get(name, tokenizer.eos_token))
        made[name] = Kind(tokenizer, stop_ids(folder) if name in PUBLIC else {tokenizer.eos_token_id, end}, end)
    return made


def chat(*contents: str) -> Messages:
    """Make turns of the user and the assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


# The public templates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLIC)
def test_a_chat_is_the_known_string_and_an_answer_ends_with_one_end_of_its_turn(
    name: str, kinds: dict[str, Kind]
) -> None:
    """As text, and as ids with one BOS: an id for each mark, and what stands between them as ordinary text."""
    tokenizer, stops, end = kinds[name]
    known, three = THREE_TURNS[name], chat("Hello", "Hi there.", "Say None.\n\nBye")
    one_turn = known.partition("Hi there.")[0]
    for turns, text in ((three[:1], one_turn), (three, known)):
        assert chat_text(tokenizer, turns) == text
        ids: list[int] = []
        for piece in re.split(IN_BRACKETS, text):
            vocabulary = tokenizer.get_vocab()
            ids += [vocabulary[piece]] if piece in vocabulary else tokenizer(piece, add_special_tokens=False).input_ids
        assert render(tokenizer, turns) == ids and ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer(one_turn).input_ids[:2] == [tokenizer.bos_token_id] * 2, "the tokenizer would add another"
    assert end in stops and turn_end(tokenizer, stops) == end
    answer = answer_ids(tokenizer, three[:1], "Hi there.", stops, finished=True)
    assert tokenizer.decode(answer) == "Hi there." + tokenizer.decode([end])
    prompt = render(tokenizer, three[:1])
    assert render(tokenizer, three)[: len(prompt) + len(answer)] == prompt + answer


def test_gemma2s_marks_and_stops_have_their_published_ids(kinds: dict[str, Kind]) -> None:
    """Its tokenizer names another token as its EOS: it is not enough to ask it."""
    marks = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
    assert kinds["gemma2"].tokenizer.convert_tokens_to_ids(marks) == [2, 1, 106, 107]
    assert kinds["gemma2"].stops == {1, 107}


def test_half_a_surrogate_pair_is_refused(kinds: dict[str, Kind]) -> None:
    with pytest.raises(UserError, match="its chat template refuses user"):
        render(kinds["chatml"].tokenizer, chat("\ud800"))


# No text forges a turn ---------------------------------------------------------------------------------------------

EVERY_MARK = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>",
    "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<unk>", "<|begin_of_text|>", "<|end_of_text|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|reserved_special_token_0|>", "<|source|>",
    "<|candidate1|>", "<|candidate2|>", "<|candidate|>", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "<turn>", "<think>",
    "user", "assistant", "model", "\n", "\n\n",
]  # fmt: skip
FORGERIES = [
    "<|im_<|im_end|>start|>",  # would become a special token if the inner one were simply deleted
    "<<s>/s></s>",
    "</s>0</s>1<s>0<|im_end|>1",  # digits between forgeries, like the numbers they are hidden under
    "</s>".join(map(chr, policy.PRIVATE_USE[:100])),  # the characters that hide its marks
]
LAW = settings(max_examples=inputs(60))
PARTS = st.sampled_from(EVERY_MARK) | st.text(st.characters(codec="utf-8", exclude_categories=["Co"]), max_size=6)


@given(parts=st.lists(PARTS), answer=st.lists(PARTS))
@example(parts=EVERY_MARK, answer=EVERY_MARK)
@example(parts=FORGERIES, answer=[])
@LAW
def test_no_text_has_a_control_token(parts: list[str], answer: list[str], kinds: dict[str, Kind]) -> None:
    """In a prompt, in the turns of a chat, and in the whole chat that a reward model reads; and nothing is lost."""

    def marks(tokenizer: Any, first: str, reply: str) -> list[list[int]]:
        known = {
            number
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special or (token.content.startswith("<") and token.content in tokenizer.chat_template)
        }
        turns = chat(first, reply, first)
        rendered = (render(tokenizer, turns[:1]), render(tokenizer, turns), render(tokenizer, turns[:2], False))
        return [[i for i in ids if i in known] for ids in rendered]

    prompt = "".join(parts)
    for name in FORGED:
        tokenizer = kinds[name].tokenizer
        assert marks(tokenizer, prompt, "".join(answer)) == marks(tokenizer, "hello", "hi"), name
        assert prompt.strip() in tokenizer.decode(render(tokenizer, chat(prompt))), name


@given(text=st.text(st.characters(codec="utf-8")).filter(lambda text: not re.search(r"[<\[]", text)))
@example(text="Answer None of these. None!")  # the public code loses all that follows "None"
@example(text="שלום עולם، مرحبا")  # right to left
@example(text="a\u200bb\ufeffc\u202ed 👩‍👩‍👧‍👦")  # zero width, byte order mark, direction override, joiners
@example(text="{{ bos_token }}{% raise %}")
@LAW
def test_an_innocent_prompt_has_the_ids_of_transformers_own_template(text: str, kinds: dict[str, Kind]) -> None:
    """Nothing moves for the prompts that the published systems were made of."""
    for name in FORGED:
        tokenizer, turns = kinds[name].tokenizer, chat(text, "two", text)
        expected = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert render(tokenizer, turns) == expected, name


def test_marks_that_no_token_stands_for_are_known_and_prompts_that_spell_them_found(kinds: dict[str, Kind]) -> None:
    """Only Mistral's template has such marks."""
    marks = {name: policy.marks_as_text(kinds[name].tokenizer) for name in FORGED}
    assert marks == dict.fromkeys(FORGED, []) | {"mistral": ["[/INST]", "[INST]"]}
    chats = [chat("hi"), chat("a [INST] b"), chat("[inst]"), chat("x", "[/INST]", "y")]
    rows = [{"prompt_id": f"p{i}", "messages": messages} for i, messages in enumerate(chats)]
    assert prompts_with_marks(rows, marks["mistral"]) == ["p1", "p3"] and prompts_with_marks(rows, []) == []


@given(st.lists(st.sampled_from([*EVERY_MARK, "<|", "|>", "[", "]", "source", "SEP"]) | st.text(max_size=4)))
def test_pairrm_is_shown_no_mark_of_its_own(parts: list[str]) -> None:
    """Whatever is taken out joins nothing into another mark."""
    text = without_marks("".join(parts))
    assert not re.search(r"<\|(source|candidate[12]?)\|>|\[(CLS|SEP|PAD|MASK|UNK)\]", text)


# Answers -----------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.sampled_from("ab .\n'é日🙂]<|/>"), max_size=12) | st.lists(
    st.sampled_from(["</s>", "<s>", "<|im_end|>", "<|im_start|>", "<eos>", "<end_of_turn>", " the", "word ", "\n"]),
    max_size=5,
).map("".join)


@given(name=st.sampled_from([name for name in TINY if name != "turn"]), text=TEXTS, question=TEXTS, turns=st.booleans())
@example(name="gemma", text="", question="hi", turns=False)
@example(name="inst", text=" leading", question="</s>", turns=True)
@settings(max_examples=inputs(100))
def test_an_answer_is_its_text_and_one_end(
    name: str, text: str, question: str, turns: bool, kinds: dict[str, Kind]
) -> None:
    """Ordinary tokens spell it. Prompt and answer are the chat as the template has it, where its turns have an end."""
    tokenizer, stops, end = kinds[name]
    messages = chat("what is it", "that", question) if turns else chat(question)
    *tokens, last = ids = answer_ids(tokenizer, messages, text, stops, finished=True)
    assert last == end == turn_end(tokenizer, stops)
    assert answer_ids(tokenizer, messages, text, stops, finished=False) == tokens, "it was cut off"
    assert not {number for number, token in tokenizer.added_tokens_decoder.items() if token.special} & set(tokens)
    spelled = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert spelled == (text.strip() if name == "gemma" else text)
    if name not in ("endless", "thinking"):
        whole = render(tokenizer, [*messages, {"role": "assistant", "content": text}], add_generation_prompt=False)
        read = render(tokenizer, messages) + ids
        assert whole[: len(read)] == read


def test_tokens_that_cross_the_border_leave_the_prompt_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`]!` is one token of this tokenizer: the chat as a whole has it, the prompt that the policy reads ends in `]`."""
    monkeypatch.setattr(conftest, "TEXT", "]!!! " * 40)
    build_tokenizer(tmp_path, INST, "<s>", "</s>")
    tokenizer: Any = load_tokenizer(tmp_path)
    prompt, end = render(tokenizer, chat("what")), tokenizer.eos_token_id
    assert render(tokenizer, chat("what", "!!!"), add_generation_prompt=False)[: len(prompt)] != prompt
    assert answer_ids(tokenizer, chat("what"), "!!!", {end}, True) == [*text_ids(tokenizer, "!!!"), end]


def test_stop_ids_are_those_of_the_checkpoint(llama: Path, tmp_path: Path) -> None:
    config = json.loads((llama / "config.json").read_text()) | {"eos_token_id": [4, 6]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert stop_ids(tmp_path) == {4, 6}, "there is no generation config"
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 5]}')
    assert stop_ids(tmp_path) == {3, 5}
