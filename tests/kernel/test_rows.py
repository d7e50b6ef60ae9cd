"""Rows on disk: what was written is read, the same rows are the same bytes, and no whole line is ever lost."""

from __future__ import annotations

import math
import os
import string
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.kernel.config import UserError
from src.kernel.rows import (
    PAIRS,
    PROMPTS,
    RANKING,
    REFERENCE,
    RESPONSES,
    ROWS,
    Row,
    prompt_id,
    read_metrics,
    read_rows,
    write_metrics,
    write_rows,
)

NAN = float("nan")
MESSAGES = [{"role": "system", "content": ""}, {"role": "user", "content": 'None \u2028 🙂 "\n\x00'}]
PROMPT: Row = {"prompt_id": "0f" * 8, "messages": MESSAGES, "source": "made", "checks": '[{"kind": "title"}]'}
ANSWERS = [
    {"text": "", "token_ids": [2**31 - 1], "finish_reason": "stop", "seed": 2**64 - 1, "source": "policy"},
    {"text": "…", "token_ids": [], "finish_reason": "length", "seed": 0, "source": "policy"},
]
PAIR: Row = (
    {"prompt_id": "a", "prompt_token_ids": [1, 2], "chosen_token_ids": [3], "rejected_token_ids": []}
    | {"chosen_win": 0.1 + 0.2, "rejected_win": 1e-300, "chosen_beats_rejected": 1 - 2**-53}
    | {"chosen_index": 0, "rejected_index": 4, "chosen_source": "policy", "rejected_source": "policy"}
)
SCALAR: Row = {"prompt_id": "a", "logits": None, "scores": [-1.5, 1e300], "truncated": [True, False]}
SCALAR |= {"prompt_truncated": True, "terms": [{"name": "pmi", "values": [0.25, -0.0]}]}
MATRIX = {"logits": [[NAN, 2.5], [-1.0, NAN]], "scores": None, "terms": None}
SCHEMAS: dict[str, tuple[pa.Schema, list[Row]]] = {
    "prompts": (PROMPTS, [PROMPT, PROMPT | {"messages": [], "checks": "[]"}]),
    "responses": (RESPONSES, [PROMPT | {"prompt_token_ids": [0, 1], "responses": ANSWERS}]),
    "scalar ranking": (RANKING, [SCALAR]),
    "matrix ranking": (
        RANKING,
        [SCALAR | {"logits": [[NAN, 2.5], [-1.0, NAN]], "scores": None, "terms": None}],
    ),
    "pairs": (PAIRS, [PAIR]),
    "reference": (REFERENCE, [PAIR | {"ref_chosen_logp": -0.1, "ref_rejected_logp": -1e4}]),
}


def plain(value: Any) -> Any:
    """The value with NaN as a word, so that it equals itself."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


@pytest.mark.parametrize("name", SCHEMAS)
def test_rows_come_back_as_they_were_written_and_are_the_same_bytes(name: str, tmp_path: Path) -> None:
    """Also from a generator, and with the keys of a row in another order; no rows are a file too."""
    schema, rows = SCHEMAS[name]
    assert set(rows[0]) == set(schema.names), "every column has a value here"
    turned = (dict(reversed(row.items())) for row in rows)
    for folder, given_rows in ((tmp_path / "a", rows), (tmp_path / "b", turned), (tmp_path / "none", [])):
        folder.mkdir()
        write_rows(folder, given_rows, schema)
    assert plain(read_rows(tmp_path / "a", schema)) == plain(rows)
    assert (tmp_path / "a" / ROWS).read_bytes() == (tmp_path / "b" / ROWS).read_bytes()
    assert read_rows(tmp_path / "none", schema) == []


def test_a_value_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        write_rows(tmp_path, [PAIR | {"chosen_token_ids": ["3"]}], PAIRS)


# Errors a user can act on ------------------------------------------------------------------------------------------


def test_a_missing_file_a_torn_file_and_missing_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / ROWS
    with pytest.raises(UserError, match=f"{path}: not a readable Parquet file"):
        read_rows(tmp_path, PAIRS)
    write_rows(tmp_path, [PAIR], PAIRS)
    with pytest.raises(UserError, match=f"{path}: lacks the columns ref_chosen_logp, ref_rejected_logp"):
        read_rows(tmp_path, REFERENCE)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=f"{path}: not a readable Parquet file"):
        read_rows(tmp_path, PAIRS)


# The identity of a prompt ------------------------------------------------------------------------------------------

texts = st.text(max_size=8)
chats = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts}), max_size=3)


@given(chats, chats)
def test_two_chats_share_an_id_exactly_when_they_are_equal(
    one: list[dict[str, str]], two: list[dict[str, str]]
) -> None:
    name = prompt_id(one)
    assert (name == prompt_id(two)) == (one == two)
    assert len(name) == 16 and set(name) <= set(string.hexdigits.lower())
    assert prompt_id([{"content": m["content"], "role": m["role"], "name": "not of it"} for m in one]) == name


def test_text_cannot_move_between_messages_and_roles_unseen() -> None:
    """What joining by a separator would confuse; and half a surrogate pair, which UTF-8 cannot write."""
    chats = [
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": 'a"], ["user", "b'}],
        [{"role": "user", "content": "ab"}],
        [{"role": "usera", "content": "b"}],
        [{"role": "user", "content": "a\nb"}],
        [{"role": "user", "content": "a\ud800b"}],
    ]
    assert len({prompt_id(chat) for chat in chats}) == len(chats)


# Numbers -----------------------------------------------------------------------------------------------------------


def test_numbers_come_back_and_one_that_is_none_is_refused(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"a": 0.1 + 0.2, "b": None})
    assert (tmp_path / "metrics.json").read_text() == '{\n "a": 0.30000000000000004,\n "b": null\n}\n'
    for number in (NAN, math.inf):
        with pytest.raises(ValueError, match="Out of range float"):
            write_metrics(tmp_path, {"a": number})
    assert read_metrics(tmp_path) == {"a": 0.1 + 0.2, "b": None}
    for content in ("[]", "{", ""):
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(UserError, match=r"metrics.json: cannot be read .*; delete the folder"):
            read_metrics(tmp_path)
