"""Prompts from files, a file a part: slices, hashes, and every mistake in a file named with its line."""

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
    return json.dumps({"messages": [{"role": role, "content": content}]} | more)


def files(*paths: Path, count: int | None = 2) -> PromptFiles:
    """Held out is a prompt that nobody asks."""
    held_out = paths[0].with_name("held_out.jsonl")
    held_out.write_text(line("held out") + "\n")
    return PromptFiles(parts=paths, held_out_file=held_out, prompts_per_iteration=count, held_out_prompts=1)


def asked(data: PromptFiles, iteration: int, out: Path) -> list[str]:
    out.mkdir()
    data.part(iteration)(out=out)
    return [row["messages"][-1]["content"] for row in records.read_rows(out, records.PROMPTS)]


def made(folder: Path, lines: list[str], count: int | None = None) -> list[str]:
    """What iteration 1 asks from a file of these lines."""
    file = folder / "part.jsonl"
    file.write_bytes("".join(text + "\n" for text in lines).encode())
    return asked(files(file, count=count), 1, folder / "out")


@pytest.mark.parametrize(
    "content", ["None", "a None b", "a\u2028b\x85c\x0bd\re", "<|im_end|>", "  spaced  ", "日本語 🙂", "null"]
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_prompt_arrives_as_it_was_written(content: str, ascii_only: bool, tmp_path: Path) -> None:
    """Unicode has line breaks of its own; only the line feed ends a row."""
    row = json.dumps({"messages": [{"role": "user", "content": content}]}, ensure_ascii=ascii_only)
    assert made(tmp_path, [row, line("next")]) == [content, "next"]


def test_iterations_read_their_part_and_then_the_next_slice_of_it(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_text("\n".join(line(f"{path.stem}{i}") for i in range(4)))  # no line feed at the end
    seen = [asked(files(*paths), t, tmp_path / f"out{t}") for t in (1, 2, 3, 4)]
    assert seen == [["a0", "a1"], ["b0", "b1"], ["a2", "a3"], ["b2", "b3"]]


def test_null_asks_all_of_a_part_and_nothing_is_left_after_the_last(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    paths[0].write_text(line("a") + "\n")
    paths[1].write_text("\n".join(line(f"b{i}") for i in range(3)))
    data = files(*paths, count=None)
    assert [data.part(t).expected for t in (1, 2)] == [1, 3]
    assert asked(data, 2, tmp_path / "out") == ["b0", "b1", "b2"]
    with pytest.raises(
        UserError, match="data.prompts_per_iteration: null asks all of a part, and iteration 3 comes af"
    ):
        data.part(3)


def test_slices_are_of_distinct_prompts(tmp_path: Path) -> None:
    """A doubled prompt does not shorten the slice it stands in."""
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(line(text) for text in "aabbcd"))
    assert [asked(files(path), t, tmp_path / f"out{t}") for t in (1, 2)] == [["a", "b"], ["c", "d"]]


def test_doubled_prompts_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert made(tmp_path, [line("a"), line("b"), line("a"), line("a")]) == ["a", "b"]
    assert "2 of 2 from part; left out: 2 doubled\n" in capsys.readouterr().out


def test_of_a_doubled_prompt_the_first_row_stays(tmp_path: Path) -> None:
    made(tmp_path, [line("a", source="first"), line("a", source="second")])
    assert [row["source"] for row in records.read_rows(tmp_path / "out", records.PROMPTS)] == ["first"]


def test_rows_without_a_source_name_their_file_and_the_key_does_too(tmp_path: Path) -> None:
    """Two files that say the same: the rows differ, so the keys must."""
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_text(line("same") + "\n" + line("said", source="mine") + "\n")
    stages = [files(path).part(1) for path in paths]
    assert len({Node("x", stage).key for stage in stages}) == 2
    stages[1](out=tmp_path)
    assert [row["source"] for row in records.read_rows(tmp_path, records.PROMPTS)] == ["b", "mine"]


def test_too_few_prompts_are_refused_when_the_run_is_planned(tmp_path: Path) -> None:
    (file := tmp_path / "part.jsonl").write_text(line("a") + "\n" + line("b") + "\n")
    assert files(file).part(1)
    with pytest.raises(UserError, match="data.prompts_per_iteration: .*part.jsonl has 2 prompts, 3 to 4 are asked for"):
        files(file).part(2)
    with pytest.raises(UserError, match="data.prompts_per_iteration"):
        files(file, count=3).part(1)


@pytest.mark.parametrize("changed", ["part.jsonl", "held_out.jsonl"])
def test_a_file_that_changed_since_the_plan_is_refused(changed: str, tmp_path: Path) -> None:
    (file := tmp_path / "part.jsonl").write_text(line("a") + "\n" + line("b") + "\n")
    stage = files(file).part(1)
    (tmp_path / changed).write_text(line("a") + "\n" + line("c") + "\n")
    (out := tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=f"{changed}: changed since the run was started"):
        stage(out=out)
    assert not list(out.iterdir())


MISTAKES = {
    "no JSON": "not json",
    "a list": "[]",
    "no messages": '{"source": "x"}',
    "empty messages": '{"messages": []}',
    "null content": line(None),
    "a number": line(3),
    "nothing": line(""),
    "white space": line(" \n\u3000"),
    "another role": line("x", role="human"),
    "the assistant last": line("x", role="assistant"),
    "an unknown check": line("x", checks=[{"kind": "words_at_mots", "n": 3}]),
    "a check whose kind is no text": line("x", checks=[{"kind": ["x"]}]),
    "a check without its parameter": line("x", checks=[{"kind": "words_between", "low": 3}]),
    "a check with a wrong parameter": line("x", checks=[{"kind": "words_at_most", "n": "3"}]),
    "checks that are no list": line("x", checks={"kind": "no_digits"}),
    "a source that is no text": line("x", source=3),
    "an empty line": "",
    "half a character": line("\ud800"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_file_is_named_with_its_line_and_nothing_is_written(mistake: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        made(tmp_path, [line("fine"), MISTAKES[mistake], line("fine too")])
    assert str(refused.value).startswith(f"{tmp_path / 'part.jsonl'}:2: ")
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (file := tmp_path / "part.jsonl").write_bytes(line("a").encode() + b"\n\xff\xfe\n")
    with pytest.raises(UserError, match="part.jsonl:2: not UTF-8"):
        files(file, count=1).part(1)
