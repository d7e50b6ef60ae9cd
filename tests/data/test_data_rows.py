"""A row becomes a prompt: columns, turns, checks, and what makes two prompts say the same."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from src import records
from src.config import UserError
from src.data.rows import Columns, same_text

USER = {"role": "user", "content": "hi"}
CHAT = [{"role": "system", "content": ""}, USER, {"role": "assistant", "content": "ho"}, USER]


def row(columns: Columns, **given: Any) -> records.Row:
    return columns.prompt_row(("file:7", given), "here")


def one(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("columns", "given_row", "messages"),
    [
        (Columns(), {"prompt": "a None b"}, one("a None b")),
        (Columns(), {"messages": CHAT}, CHAT),
        (Columns(), {"messages": json.dumps(CHAT)}, CHAT),  # as in a CSV
        (Columns(), {"prompt": "a", "messages": CHAT}, one("a")),
        (Columns(), {"prompt": None, "messages": CHAT}, CHAT),
        (Columns(prompt="q"), {"q": "[1]", "prompt": "b", "messages": CHAT}, one("[1]")),
        (Columns(prompt="messages"), {"messages": "hi"}, one("hi")),
        (Columns(messages="q"), {"q": CHAT, "prompt": "b"}, CHAT),
        (Columns(messages="prompt"), {"prompt": CHAT}, CHAT),
        (Columns(), {"messages": [USER | {"name": None}]}, [USER]),
    ],
)
def test_the_column_that_holds_the_prompt(columns: Columns, given_row: dict[str, Any], messages: list[Any]) -> None:
    found = row(columns, **given_row)
    assert found["messages"] == messages
    assert found["prompt_id"] == records.prompt_id(messages)
    assert (found["source"], found["checks"]) == ("here", "[]")


@pytest.mark.parametrize(("columns", "named"), [(Columns(), {"prompt", "messages"}), (Columns(prompt="q"), {"q"})])
def test_only_what_is_needed_is_read(columns: Columns, named: set[str]) -> None:
    assert set(columns.wanted) == named | {"source", "checks"}


def test_source_and_checks_come_along_also_as_text() -> None:
    check = [{"kind": "words_at_least", "n": 2}]
    for checks in (check, json.dumps(check)):
        found = row(Columns(), prompt="a", source="mine", checks=checks)
        assert (found["source"], json.loads(found["checks"])) == ("mine", check)
    empty = row(Columns(), prompt="a", source="", checks="")  # empty cells of a CSV
    assert (empty["source"], empty["checks"]) == ("here", "[]")


def test_a_row_of_an_artifact_is_read_as_it_was_written() -> None:
    first = row(Columns(), messages=CHAT, source="mine", checks=[{"kind": "no_digits"}])
    assert row(Columns(), **{name: first[name] for name in ("messages", "source", "checks")}) == first


MISTAKES = [
    (Columns(), {}, "no column 'prompt' or 'messages'; name the one that holds the prompt in data.prompt or"),
    (Columns(prompt="q"), {"prompt": "a"}, "no column 'q'"),
    (Columns(messages="q"), {"messages": CHAT}, "no column 'q'"),
    (Columns(), {"prompt": None}, "prompt: None is no text"),
    (Columns(), {"prompt": ""}, "prompt: empty; write the prompt or delete the row"),
    (Columns(), {"prompt": " \t\n\u2003"}, "prompt: only white space"),
    (Columns(), {"prompt": 3}, "prompt: 3 is no text"),
    (Columns(), {"prompt": CHAT}, "prompt: a list, not text; a column of turns is named by data.messages=prompt"),
    (Columns(), {"prompt": "a\ud800b"}, "the prompt: '\\ud800' is half of a character"),
    (Columns(), {"messages": [{"role": "system", "content": "\udfff"}, USER]}, "the prompt: '\\udfff' is half"),
    (Columns(), {"messages": "hello"}, "messages: 'hello' is no JSON"),
    (Columns(), {"messages": []}, "messages: [] is no list of turns"),
    (Columns(), {"messages": USER}, "messages: {'role': 'user', 'content': 'hi'} is no list"),
    (Columns(), {"messages": ["hi"]}, "messages: turn 1: 'hi' is no object with role and content"),
    (Columns(), {"messages": [{"role": "user"}]}, "messages: turn 1: {'role': 'user'} is no object with"),
    (
        Columns(),
        {"messages": [USER, {"role": "gpt", "content": ""}]},
        "messages: turn 2: unknown role 'gpt'; the roles",
    ),
    (Columns(), {"messages": [{"role": ["user"], "content": ""}]}, "messages: turn 1: unknown role ['user']"),
    (Columns(), {"messages": CHAT[:3]}, "messages: the last turn is by 'assistant', must be the user's"),
    (Columns(), {"messages": CHAT[:1]}, "messages: the last turn is by 'system'"),
    (Columns(), {"messages": [USER | {"content": " "}, *CHAT]}, "messages: turn 1: only white space"),
    (Columns(), {"messages": [{"role": "assistant", "content": None}, USER]}, "messages: turn 1: None is no text"),
    (Columns(), {"messages": [USER | {"tool_calls": [1]}]}, "messages: turn 1: 'tool_calls' would be lost"),
    (Columns(), {"prompt": "a", "source": 3}, "source: 3 is no text"),
    (Columns(), {"prompt": "a", "source": "\ud800"}, "source: '\\ud800' is half"),
    (Columns(), {"prompt": "a", "checks": "x"}, "checks: 'x' is no JSON"),
    (Columns(), {"prompt": "a", "checks": ["no_digits"]}, "checks: ['no_digits'] is no list of checks"),
    (Columns(), {"prompt": "a", "checks": [{"kind": "first_word", "word": "\ud800"}]}, "checks: '\\ud800' is half"),
]


@pytest.mark.parametrize(("columns", "given_row", "told"), MISTAKES)
def test_a_mistake_is_one_line_with_its_place(columns: Columns, given_row: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as refused:
        row(columns, **given_row)
    said = str(refused.value)
    assert said.startswith(f"file:7: {told}")
    assert "\n" not in said and len(said) < 300 and said.isprintable()


def test_what_is_shown_of_a_long_value_is_short() -> None:
    with pytest.raises(UserError) as refused:
        row(Columns(), messages=["x" * 10_000])
    assert len(str(refused.value)) < 200


def test_two_columns_cannot_both_be_the_prompt() -> None:
    with pytest.raises(ValueError, match="prompt and messages: name one of them"):
        Columns(prompt="a", messages="b")


LETTERS = "aAzZßẞſéÉe\u0301ﬃＡ²①ıİΣσςǅ日ｱ.!_ \t\n\u3000\u2028\x1f"
"""Letters with several cases, forms and widths."""


@example("ß\u0301")
@given(st.text(LETTERS, min_size=1).filter(str.strip))
def test_case_white_space_and_unicode_form_do_not_make_another_text(text: str) -> None:
    for other in (text.casefold(), f"\n {text}\u3000", unicodedata.normalize("NFKC", text)):
        assert same_text(one(other)) == same_text(one(text))
    spaced = text.replace(" ", " \t ")
    assert same_text(one(spaced)) == same_text(one(text))


def test_letters_roles_and_turns_do() -> None:
    texts = [one("Say ß"), one("say sst"), one("say s s"), [*CHAT], [CHAT[1], CHAT[2], CHAT[1]]]
    assert len({same_text(messages) for messages in texts}) == len(texts)
    assert same_text(one("SAY \ufb03 SS")) == same_text(one("say  ffi ß")), "a ligature, and a capital of two letters"
    swapped = [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}]
    assert same_text(swapped) != same_text([swapped[1], swapped[1]])
