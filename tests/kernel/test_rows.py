"""Rows on disk: what was written is read, and the same rows are the same bytes."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pyarrow as pa
import pytest

from src.kernel import rows
from src.kernel.config import UserError
from src.kernel.rows import PAIRS, REFERENCE, ROWS, Row, prompt_id, read_metrics, read_rows, write_metrics, write_rows

NAN = float("nan")
MESSAGES = [{"role": "system", "content": ""}, {"role": "user", "content": 'None \u2028 🙂 "\n\x00'}]
PROMPT: Row = {"prompt_id": "0f" * 8, "messages": MESSAGES, "source": "made", "checks": "[]"}
ANSWER = {"text": "", "token_ids": [2**31 - 1], "finish_reason": "stop", "seed": 2**64 - 1, "source": "policy"}
IDS = {"prompt_token_ids": [1, 2], "chosen_token_ids": [3], "rejected_token_ids": []}
PAIR: Row = IDS | {"prompt_id": "a", "chosen_win": 0.1 + 0.2, "rejected_win": 1e-300, "chosen_beats_rejected": 0.5}
PAIR |= {"chosen_index": 0, "rejected_index": 4, "chosen_source": "policy", "rejected_source": "policy"}
SCALAR: Row = {"prompt_id": "a", "logits": None, "scores": [-1.5, 1e300], "truncated": [True, False]}
SCALAR |= {"prompt_truncated": True, "terms": [{"name": "pmi", "values": [0.25, -0.0]}]}
MATRIX = SCALAR | {"logits": [[NAN, 2.5], [-1.0, NAN]], "scores": None, "terms": None}
CASES: list[tuple[pa.Schema, Row]] = [
    (rows.PROMPTS, PROMPT),
    (rows.RESPONSES, PROMPT | {"prompt_token_ids": [0, 1], "responses": [ANSWER, ANSWER | {"token_ids": []}]}),
    *((rows.RANKING, SCALAR), (rows.RANKING, MATRIX), (PAIRS, PAIR)),
    (REFERENCE, PAIR | {"ref_chosen_logp": -0.1, "ref_rejected_logp": -1e4}),
]


def test_rows_come_back_as_they_were_written_and_are_the_same_bytes(tmp_path: Path) -> None:
    """Also from a generator, and with the keys of a row in another order."""
    for number, (schema, row) in enumerate(CASES):
        one, other = tmp_path / f"{number}", tmp_path / f"{number} again"
        for folder, made in ((one, [row, row]), (other, (dict(reversed(row.items())) for _ in range(2)))):
            folder.mkdir()
            write_rows(folder, made, schema)
        assert repr(sorted(read_rows(one, schema)[1].items())) == repr(sorted(row.items())), "repr shows NaN as itself"
        assert (one / ROWS).read_bytes() == (other / ROWS).read_bytes()


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


def test_the_id_of_a_chat_depends_on_roles_and_contents_alone_and_text_cannot_move_between_them() -> None:
    """These are chats that joining by a separator would confuse; the last has half a character."""
    chats = [[("user", "a"), ("user", "b")], [("user", 'a"], ["user", "b')], [("user", "ab")], [("usera", "b")]]
    chats += [[("user", "a\nb")], [("user", "a\ud800b")]]
    rows = [[{"role": role, "content": content} for role, content in chat] for chat in chats]
    assert len({prompt_id(messages) for messages in rows}) == len(chats)
    assert prompt_id([message | {"name": "not of it"} for message in rows[0]]) == prompt_id(rows[0])


def test_numbers_come_back_and_one_that_is_none_is_refused(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"a": 0.1 + 0.2, "b": None})
    for number in (NAN, math.inf):
        with pytest.raises(ValueError, match="Out of range float"):
            write_metrics(tmp_path, {"a": number})
    assert read_metrics(tmp_path) == {"a": 0.1 + 0.2, "b": None}
    for content in ("[]", "{", ""):
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(UserError, match=r"metrics.json: cannot be read .*; delete the folder"):
            read_metrics(tmp_path)
