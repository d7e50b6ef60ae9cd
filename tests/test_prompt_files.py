"""Prompts from the user's files: slices, hashes, and every mistake in a file named with its line.

Run: python -m pytest -q tests/test_prompt_files.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from src import records
from src.artifact import Node
from src.config import UserError
from src.data.stage import PromptFiles


def line(content: Any, role: str = "user", **more: Any) -> str:
    return json.dumps({"messages": [{"role": role, "content": content}]} | more, ensure_ascii=False)


def files(*paths: Path, count: int = 2) -> PromptFiles:
    return PromptFiles(parts=paths, held_out_file=paths[0], prompts_per_iteration=count, held_out_prompts=1)


def made(folder: Path, lines: list[str], count: int | None = None) -> list[records.Row]:
    """The rows of iteration 1 from a file of these lines."""
    file, out = folder / "part.jsonl", folder / "out"
    file.write_bytes("".join(text + "\n" for text in lines).encode())
    out.mkdir()
    files(file, count=count or len(lines)).part(1)(out=out)
    return records.read_rows(out, records.PROMPTS)


def asked(rows: list[records.Row]) -> list[str]:
    return [row["messages"][-1]["content"] for row in rows]


@pytest.mark.parametrize("content", ["None", "", "a\u2028b\x85c\x0bd", "<|im_end|>", "  spaced  ", "日本語 🙂", "null"])
def test_a_prompt_arrives_as_it_was_written(content: str, tmp_path: Path) -> None:
    """Unicode has line breaks of its own; only the line feed ends a row."""
    assert asked(made(tmp_path, [line(content), line("next")])) == [content, "next"]


def test_iterations_read_their_part_and_then_the_next_slice_of_it(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_text("\n".join(line(f"{path.stem}{i}") for i in range(4)))  # no line feed at the end
    seen = []
    for t in (1, 2, 3, 4):
        (out := tmp_path / f"out{t}").mkdir()
        files(*paths).part(t)(out=out)
        seen.append(asked(records.read_rows(out, records.PROMPTS)))
    assert seen == [["a0", "a1"], ["b0", "b1"], ["a2", "a3"], ["b2", "b3"]]


def test_doubled_prompts_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(made(tmp_path, [line("a"), line("b"), line("a")])) == ["a", "b"]
    assert "1 doubled prompts" in capsys.readouterr().out


def test_rows_without_a_source_name_their_file_and_the_key_does_too(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_text(line("same") + "\n" + line("said", source="mine") + "\n")
    stages = [files(*paths).part(t) for t in (1, 2)]
    assert len({Node("x", stage).key for stage in stages}) == 2
    stages[1](out=tmp_path)
    assert [row["source"] for row in records.read_rows(tmp_path, records.PROMPTS)] == ["b", "mine"]


def test_too_few_prompts_are_refused_when_the_run_is_planned(tmp_path: Path) -> None:
    (file := tmp_path / "part.jsonl").write_text(line("a") + "\n" + line("b") + "\n")
    assert files(file).part(1)
    with pytest.raises(UserError, match="data.prompts_per_iteration: .* has 2 prompts, rows 3 to 4 are asked for"):
        files(file).part(2)
    with pytest.raises(UserError, match="data.prompts_per_iteration"):
        files(file, count=3).part(1)


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    (file := tmp_path / "part.jsonl").write_text(line("a") + "\n" + line("b") + "\n")
    stage = files(file).part(1)
    file.write_text(line("a") + "\n" + line("c") + "\n")
    with pytest.raises(UserError, match="changed since the run was started"):
        stage(out=tmp_path)


MISTAKES = {
    "no JSON": "not json",
    "a list": "[]",
    "no messages": '{"source": "x"}',
    "empty messages": '{"messages": []}',
    "null content": line(None),
    "a number": line(3),
    "another role": line("x", role="human"),
    "the assistant last": line("x", role="assistant"),
    "an unknown key": line("x", check=[]),
    "an unknown check": line("x", checks=[{"kind": "words_at_mots", "n": 3}]),
    "a check whose kind is no text": line("x", checks=[{"kind": ["x"]}]),
    "a check without its parameter": line("x", checks=[{"kind": "words_between", "low": 3}]),
    "a check with a wrong parameter": line("x", checks=[{"kind": "words_at_most", "n": "3"}]),
    "an empty line": "",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_file_is_named_with_its_line(mistake: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        made(tmp_path, [line("fine"), MISTAKES[mistake], line("fine too")])
    assert str(refused.value).startswith(f"{tmp_path / 'part.jsonl'}:2: not a prompt row: ")
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (file := tmp_path / "part.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="part.jsonl: not UTF-8"):
        files(file, count=1).part(1)
