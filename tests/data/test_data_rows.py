"""A row becomes a prompt: columns, turns, checks, and what makes two prompts say the same."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from src.data.prompts import Columns, same_text
from src.kernel.config import UserError
from src.kernel.rows import Row, prompt_id

USER = {"role": "user", "content": "hi"}
CHAT = [{"role": "system", "content": ""}, USER, {"role": "assistant", "content": "ho"}, USER]


def row(columns: Columns, **given: Any) -> Row:
    return columns.prompt_row(("file:7", given), "here")


def one(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


PROMPTS: list[tuple[Columns, Row, list[dict[str, str]]]] = [
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
    (Columns(), {"messages": json.dumps([USER | {"name": None}])}, [USER]),
]


def test_the_column_that_holds_the_prompt() -> None:
    for columns, given_row, messages in PROMPTS:
        found = row(columns, **given_row)
        assert found["messages"] == messages, (columns, given_row)
        assert found["prompt_id"] == prompt_id(messages)
        assert (found["source"], found["checks"]) == ("here", "[]")
    assert set(Columns().wanted) == {"prompt", "messages", "source", "checks"}
    assert set(Columns(prompt="q").wanted) == {"q", "source", "checks"}, "only what is needed is read"


def test_source_and_checks_come_along_also_as_text() -> None:
    check = [{"kind": "words_at_least", "n": 2}]
    for checks in (check, json.dumps(check)):
        found = row(Columns(), prompt="a", source="mine", checks=checks)
        assert (found["source"], json.loads(found["checks"])) == ("mine", check)
    empty = row(Columns(), prompt="a", source="", checks="")  # empty cells of a CSV
    assert (empty["source"], empty["checks"]) == ("here", "[]")


MISTAKES: list[tuple[Columns, Row, str]] = [
    (Columns(), {}, "no column 'prompt' or 'messages'"),
    (Columns(messages="q"), {"messages": CHAT}, "no column 'q'"),
    (Columns(), {"prompt": None}, "prompt: None is no text"),
    (Columns(), {"prompt": " \t\n\u2003"}, "prompt: empty, or only white space"),
    (Columns(), {"prompt": CHAT}, "prompt: [{"),
    (Columns(), {"messages": "hello"}, "messages: expected value"),
    (Columns(), {"messages": []}, "messages: Value should have at least 1 item"),
    (Columns(), {"messages": [{"role": "user"}]}, "messages.0.content: missing"),
    (
        Columns(),
        {"messages": [USER, {"role": "gpt", "content": ""}]},
        "messages.1.role: Input should be 'system', 'user' or 'assistant' (got 'gpt')",
    ),
    (Columns(), {"messages": [{"role": ["user"], "content": ""}]}, "messages.0.role: "),
    (Columns(), {"messages": CHAT[:3]}, "messages: the last turn"),
    (Columns(), {"messages": [USER | {"content": " "}, *CHAT]}, "messages: empty, or only white space"),
    (
        Columns(),
        {"messages": [USER | {"tool_calls": [1]}]},
        "messages.0.tool_calls: Extra inputs are not permitted",
    ),
    (Columns(), {"messages": ["x" * 10_000]}, "messages.0: "),
    (Columns(), {"prompt": "a", "source": 3}, "source: Input should be a valid string"),
    (Columns(), {"prompt": "a", "checks": "x"}, "checks: expected value"),
    (Columns(), {"prompt": "a", "checks": ["no_digits"]}, "checks.0: "),
    (Columns(), {"prompt": "a", "checks": [{"kind": "words_at_mots", "n": 3}]}, "checks.0: unknown kind"),
    (Columns(), {"prompt": "a", "checks": [{"kind": "words_between", "low": 3}]}, "checks.0: a check of"),
    (Columns(), {"prompt": "a", "checks": [{"kind": "words_at_most", "n": "3"}]}, "checks.0: a check of"),
]


def test_a_mistake_is_one_short_line_with_its_place() -> None:
    wrong = []
    for columns, given_row, told in MISTAKES:
        with pytest.raises(UserError) as refused:
            row(columns, **given_row)
        said = str(refused.value)
        fine = said.startswith(f"file:7: {told}") and "\n" not in said and len(said) < 1000 and said.isprintable()
        wrong += [(told, said)] * (not fine)
    assert wrong == []
    with pytest.raises(ValueError, match="prompt and messages"):
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
