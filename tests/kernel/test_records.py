"""Rows on disk: what was written is read, the same rows are the same bytes, and no whole line is ever lost."""

from __future__ import annotations

import math
import os
import string
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from src.kernel import records
from src.kernel.config import UserError
from src.kernel.records import Journal, Row

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
    "prompts": (records.PROMPTS, [PROMPT, PROMPT | {"messages": [], "checks": "[]"}]),
    "responses": (records.RESPONSES, [PROMPT | {"prompt_token_ids": [0, 1], "responses": ANSWERS}]),
    "scalar ranking": (records.RANKING, [SCALAR]),
    "matrix ranking": (
        records.RANKING,
        [SCALAR | {"logits": [[NAN, 2.5], [-1.0, NAN]], "scores": None, "terms": None}],
    ),
    "pairs": (records.PAIRS, [PAIR]),
    "reference": (records.REFERENCE, [PAIR | {"ref_chosen_logp": -0.1, "ref_rejected_logp": -1e4}]),
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
        records.write_rows(folder, given_rows, schema)
    assert plain(records.read_rows(tmp_path / "a", schema)) == plain(rows)
    assert (tmp_path / "a" / records.ROWS).read_bytes() == (tmp_path / "b" / records.ROWS).read_bytes()
    assert records.read_rows(tmp_path / "none", schema) == []


def test_a_value_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        records.write_rows(tmp_path, [PAIR | {"chosen_token_ids": ["3"]}], records.PAIRS)


# Errors a user can act on ------------------------------------------------------------------------------------------


def test_a_missing_file_a_torn_file_and_missing_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / records.ROWS
    with pytest.raises(UserError, match=f"{path}: not a readable Parquet file"):
        records.read_rows(tmp_path, records.PAIRS)
    records.write_rows(tmp_path, [PAIR], records.PAIRS)
    with pytest.raises(UserError, match=f"{path}: lacks the columns ref_chosen_logp, ref_rejected_logp"):
        records.read_rows(tmp_path, records.REFERENCE)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=f"{path}: not a readable Parquet file"):
        records.read_rows(tmp_path, records.PAIRS)


# The identity of a prompt ------------------------------------------------------------------------------------------

texts = st.text(max_size=8)
chats = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts}), max_size=3)


@given(chats, chats)
def test_two_chats_share_an_id_exactly_when_they_are_equal(
    one: list[dict[str, str]], two: list[dict[str, str]]
) -> None:
    name = records.prompt_id(one)
    assert (name == records.prompt_id(two)) == (one == two)
    assert len(name) == 16 and set(name) <= set(string.hexdigits.lower())
    assert records.prompt_id([{"content": m["content"], "role": m["role"], "name": "not of it"} for m in one]) == name


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
    assert len({records.prompt_id(chat) for chat in chats}) == len(chats)


# The journal -------------------------------------------------------------------------------------------------------

ROWS: list[Row] = [{"scores": [0.1, NAN], "text": "a\nb\u2028\r"}, {}, {"x": None}, {"logp": -1e-300}]


def filled(work: Path) -> Path:
    """A journal of four rows, added two at a time."""
    journal = Journal(work)
    journal.add(enumerate(ROWS[:2]))
    journal.add((i, ROWS[i]) for i in (2, 3))
    return work / "journal.jsonl"


def test_a_journal_remembers_every_row_it_was_given_and_of_two_the_newer(tmp_path: Path) -> None:
    filled(tmp_path)
    assert plain(Journal(tmp_path).rows) == plain(dict(enumerate(ROWS)))
    Journal(tmp_path).add([(0, {"try": 2})])
    assert Journal(tmp_path).rows[0] == {"try": 2}


def test_a_journal_torn_at_any_byte_keeps_every_whole_line_and_goes_on(tmp_path: Path) -> None:
    content = filled(tmp_path / "whole").read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    assert len(ends) == len(ROWS)
    for length in range(len(content) + 1):
        path = filled(tmp_path / "torn")
        os.truncate(path, length)
        whole = sum(end <= length for end in ends)
        journal = Journal(path.parent)
        assert list(journal.rows) == list(range(whole))
        journal.add((i, ROWS[i]) for i in range(whole, len(ROWS)))
        assert path.read_bytes() == content
        path.unlink()


def test_damaged_lines_of_a_journal_are_told_and_the_others_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = filled(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(b"logp")] ^= 1
    path.write_bytes(content)
    assert list(Journal(tmp_path).rows) == [0, 1, 2]
    assert capsys.readouterr().err == f"{path}: 1 damaged lines; what they held is computed again\n"


@settings(max_examples=inputs(30))
@given(st.dictionaries(st.integers(0, 99), st.dictionaries(texts, st.one_of(st.none(), st.floats(), texts))))
def test_any_row_survives_the_journal(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[int, dict[str, float | str | None]]
) -> None:
    work = tmp_path_factory.mktemp("journal")
    Journal(work).add(rows.items())
    assert plain(Journal(work).rows) == plain(rows)
