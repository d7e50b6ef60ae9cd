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


def prompt_row(columns: Columns, **values: Any) -> Row:
    return columns.prompt_row(("file:7", values), "here")


def one(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


PROMPTS: list[tuple[Columns, Row, list[dict[str, str]]]] = [
    (Columns(), {"prompt": "a None b"}, one("a None b")),
    (Columns(), {"messages": CHAT}, CHAT),
    (Columns(), {"messages": json.dumps(CHAT)}, CHAT),  # as in a CSV
    (Columns(), {"prompt": None, "messages": CHAT}, CHAT),
    (Columns(prompt="q"), {"q": "[1]", "prompt": "b", "messages": CHAT}, one("[1]")),
    (Columns(messages="prompt"), {"prompt": CHAT}, CHAT),
    (Columns(), {"messages": [USER | {"name": None}]}, [USER]),  # as in Parquet
]


def test_the_column_that_holds_the_prompt() -> None:
    for columns, values, messages in PROMPTS:
        row = prompt_row(columns, **values)
        assert row["messages"] == messages, (columns, values)
        assert row["prompt_id"] == prompt_id(messages)
        assert (row["source"], row["checks"]) == ("here", "[]")
    assert set(Columns().wanted) == {"prompt", "messages", "source", "checks"}
    assert set(Columns(prompt="q").wanted) == {"q", "source", "checks"}, "only what is needed is read"


def test_source_and_checks_come_along_also_as_text() -> None:
    check = [{"kind": "words_at_least", "n": 2}]
    rows = [prompt_row(Columns(), prompt="a", source="mine", checks=one) for one in (check, json.dumps(check))]
    assert [(row["source"], json.loads(row["checks"])) for row in rows] == [("mine", check)] * 2


MISTAKES: list[tuple[Columns, Row, str]] = [
    (Columns(messages="q"), {"messages": CHAT}, "no column 'q'"),
    (Columns(), {"messages": "hello"}, "messages: expected value"),
    (Columns(), {"messages": [USER | {"content": " "}, *CHAT]}, "messages: empty, or only white space"),
    (Columns(), {"messages": ["x" * 10_000]}, "messages.0: "),
    (Columns(), {"prompt": "a", "checks": [{"kind": "words_at_mots", "n": 3}]}, "checks.0: unknown kind"),
    (Columns(), {"prompt": "a", "checks": [{"kind": "words_between", "low": 3}]}, "checks.0: a check of"),
]


@pytest.mark.parametrize(("columns", "values", "message"), MISTAKES)
def test_a_mistake_is_one_short_line_with_its_place(columns: Columns, values: Row, message: str) -> None:
    with pytest.raises(UserError) as refused:
        prompt_row(columns, **values)
    line = str(refused.value)
    assert line.startswith(f"file:7: {message}") and line.isprintable() and len(line) < 1000


LETTERS = "aAzZßẞſéÉe\u0301ﬃＡ²①ıİΣσςǅ日ｱ.!_ \t\n\u3000\u2028\x1f"
"""Letters with several cases, forms and widths."""


@example("ß\u0301")
@given(st.text(LETTERS, min_size=1).filter(str.strip))
def test_case_white_space_and_unicode_form_do_not_make_another_text(text: str) -> None:
    for other in (text.casefold(), f"\n {text}\u3000", unicodedata.normalize("NFKC", text), text.replace(" ", " \t ")):
        assert same_text(one(other)) == same_text(one(text))


def test_letters_roles_and_turns_do() -> None:
    swapped = [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}]
    texts = [one("Say ß"), one("say sst"), one("say s s"), CHAT, CHAT[1:], swapped, [swapped[1], swapped[1]]]
    assert len({same_text(messages) for messages in texts}) == len(texts)
    assert same_text(one("SAY \ufb03 SS")) == same_text(one("say  ffi ß")), "a ligature, and a capital of two letters"
