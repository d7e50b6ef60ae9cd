"""Rows of somebody else's files: every format says the same."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.source import Source, read_columns

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write the rows in the format of the suffix, by somebody else's writer."""
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
    else:
        file.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return file


def read(path: Path, *columns: str) -> list[tuple[str, dict[str, Any]]]:
    return list(read_columns(Source(path=str(path)), columns))


@settings(max_examples=inputs(60))
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6))
def test_what_was_written_is_read_and_counted(pairs: list[tuple[str, str]]) -> None:
    """In order, counted from 1, and without the column that nobody asked for."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"prompt": prompt, "answer": answer} for prompt, answer in pairs]
        for suffix in (".jsonl", ".parquet"):
            file = write(Path(folder) / f"data{suffix}", rows)
            places = [f"{file}:{number}" for number in range(1, len(rows) + 1)]
            prompts = [{"prompt": row["prompt"]} for row in rows]
            assert read(file, "prompt", "nope") == list(zip(places, prompts, strict=True))
            assert read(file, "answer", "prompt") == list(zip(places, rows, strict=True))
            assert Source(path=str(file)).count() == len(rows)


def test_a_folder_is_its_files_by_name_and_each_has_its_own_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte order mark and empty lines are passed over, and counted as lines. It may be the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"n": "1"}\n\n\r\n{"n": "2"}\n')
    write(tmp_path / "c.parquet", [{"n": "3"}])
    (tmp_path / "notes.txt").write_text("not a row")
    rows = [(Path(place).name, row["n"]) for place, row in read(Path("~"), "n")]
    assert rows == [("b.jsonl:1", "1"), ("b.jsonl:4", "2"), ("c.parquet:1", "3")]


def test_content_follows_what_files_say_and_not_where_they_lie(tmp_path: Path) -> None:
    def content(folder: str, text: str, name: str = "a.jsonl") -> str:
        file = tmp_path / folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return Source(path=str(file)).content()

    assert content("here", "x") == content("there", "x")
    assert len({content("here", "x"), content("here", "y"), content("here", "x", "b.jsonl")}) == 3
    folder = Source(path=str(tmp_path / "here"))
    before = folder.content()
    (tmp_path / "here" / "b.jsonl").rename(tmp_path / "here" / "c.jsonl")
    assert folder.content() != before, "names of files are in the sources of rows"
