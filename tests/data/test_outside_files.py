"""Answers of a file that the policy did not give: a row finds its prompt in every form, and a mistake its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from asked_engine import QUESTIONS, prompts
from hydra.errors import InstantiationException
from outside_answers import IDS, chat, source, written

from src import records
from src.config import UserError
from src.outside.source import OUTSIDE, AnswerSource
from src.records import Row


def answered(text: str | None) -> list[dict[str, str | None]]:
    return [{"role": "assistant", "content": text}]


def read(folder: Path, rows: list[dict[str, Any]], *more: str, name: str = "outside.jsonl") -> tuple[list[Row], Any]:
    """OUTSIDE rows and counts that such a file gives to the three prompts."""
    who = [] if any("source_column" in word for word in more) else ["source=gpt"]
    found = source("file", f"path={written(folder, rows, name)}", *who, *more)
    assert isinstance(found, AnswerSource)
    (out := folder / "out").mkdir(exist_ok=True)
    found.stage("data.answers.x")(prompts(folder / "prompts"), out=out)
    return records.read_rows(out, OUTSIDE), json.loads((out / "metrics.json").read_text())


FORMS: dict[str, tuple[Any, list[str]]] = {
    "prompt and text": (lambda q, a: {"prompt": q, "answer": a}, []),
    "messages and text": (lambda q, a: {"messages": chat(q), "answer": a}, []),
    "a named column of text": (lambda q, a: {"q": q, "said": a, "prompt": "no"}, ["prompt=q", "answer=said"]),
    "a named column of turns": (lambda q, a: {"q": chat(q), "answer": a}, ["messages=q"]),
    "prompt_id": (lambda q, a: {"id": IDS.get(q, "0" * 16), "answer": a}, ["prompt_id=id"]),
    "UltraFeedback's chosen": (
        lambda q, a: {"prompt": q, "prompt_id": "f" * 64, "chosen": chat(q) + answered(a), "messages": chat(q)},
        ["answer=chosen"],
    ),
    "a whole chat": (lambda q, a: {"messages": chat(q) + answered(a)}, ["answer=messages"]),
    "turns of the answer alone": (lambda q, a: {"prompt": q, "answer": answered(a)}, []),
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_a_row_finds_its_prompt_in_every_form(form: str, suffix: str, tmp_path: Path) -> None:
    """Answers for two of three prompts, a second one for the first, and one for a prompt that nobody asks."""
    make, options = FORMS[form]
    rows = [make(*row) for row in [("ok?", "Yes."), ("else", "x"), ("hi", " Hello </s>"), ("ok?", "No.")]]
    found, counts = read(tmp_path, rows, *options, name=f"outside.{suffix}")
    shown = [(row["prompt_id"], row["text"], row["finish_reason"], row["seed"], row["source"]) for row in found]
    assert shown == [(IDS["hi"], " Hello </s>", "stop", None, "gpt"), (IDS["ok?"], "Yes.", "stop", None, "gpt")]
    assert {name: counts[name] for name in ("rows", "unused", "doubled")} == {"rows": 4, "unused": 1, "doubled": 1}


def test_a_source_that_says_the_same_to_all_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for texts, warned in ((["I cannot."] * 3, True), (["a", "b", "c"], False)):
        rows = [{"prompt": question, "answer": text} for question, text in zip(QUESTIONS, texts, strict=True)]
        (folder := tmp_path / texts[0]).mkdir()
        _, numbers = read(folder, rows)
        assert numbers["commonest"] == (1 if warned else 1 / 3)
        line = "data.answers.x: warning: 3 of 3 prompts have one and the same text among their answers\n"
        assert (line in capsys.readouterr().out) == warned


def test_a_column_may_say_who_answered_and_null_is_an_empty_answer(tmp_path: Path) -> None:
    rows = [{"prompt": "hi", "answer": None, "by": "a"}, {"prompt": "ok?", "answer": answered(None), "by": "b"}]
    found, _ = read(tmp_path, rows, "source_column=by")
    assert [(row["text"], row["source"]) for row in found] == [("", "a"), ("", "b")]


def test_csv_and_folders_are_read_too(tmp_path: Path) -> None:
    (parts := tmp_path / "parts").mkdir()
    (parts / "a.csv").write_text('prompt,answer\nhi,"Hello, you"\n')
    written(parts, [{"prompt": "ok?", "answer": "Yes."}], "b.jsonl")
    stage = source("file", f"path={parts}").stage("data.answers.x")
    stage(prompts(tmp_path / "prompts"), out=tmp_path)
    shown = [(row["text"], row["source"]) for row in records.read_rows(tmp_path, OUTSIDE)]
    assert shown == [("Hello, you", "parts"), ("Yes.", "parts")]


MISTAKES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "no answer": ({"prompt": "hi"}, [], "no column 'answer'; name the right one below data.answers.x"),
    "no prompt": ({"answer": "x"}, [], "no column 'messages'; name"),
    "no such prompt": ({"prompt": "hi", "answer": "x"}, ["prompt=q"], "no column 'q'; name"),
    "the user last": ({"prompt": "hi", "answer": chat("x")}, [], "answer: the last turn is not the assistant's"),
    "a number": ({"prompt": "hi", "answer": 3}, [], "answer: int, neither text nor a list of turns"),
    "a foreign id": ({"prompt_id": "f" * 64, "answer": "x"}, ["prompt_id=prompt_id"], "no prompt_id of this store"),
    "no prompt text": ({"prompt": 3, "answer": "x"}, [], "prompt: 3 is no text"),
    "no source": ({"prompt": "hi", "answer": "x", "by": ""}, ["source_column=by"], "by: '' names no source"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_line(mistake: str, tmp_path: Path) -> None:
    row, options, line = MISTAKES[mistake]
    with pytest.raises(UserError, match=f"outside.jsonl:2: .*{line}") as error:
        read(
            tmp_path,
            [row | {"prompt": "hi", "q": "hi", "answer": "x", "by": "b", "prompt_id": IDS["hi"]}, row],
            *options,
        )
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_changed_or_answers_nothing_is_refused(tmp_path: Path) -> None:
    asked = prompts(tmp_path / "prompts")
    with pytest.raises(UserError, match="^data.answers.x.path: no file"):
        source("file", f"path={tmp_path}/none.jsonl", "source=a").stage("data.answers.x")
    path = written(tmp_path, [{"prompt": "HI", "answer": "x"}])
    stage = source("file", f"path={path}", "source=a").stage("data.answers.x")
    with pytest.raises(UserError, match="none of the 1 rows of .* answers any of 3 prompts"):
        stage(asked, out=tmp_path)
    written(tmp_path, [{"prompt": "hi", "answer": "x"}])
    with pytest.raises(UserError, match="outside.jsonl changed since the run was started"):
        stage(asked, out=tmp_path)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["source=a", "prompt=q", "prompt_id=i"], "prompt_id and prompt: name one of them"),
        (["source=a", "source_column=b"], "source and source_column: name one of them"),
        (["source=a", "subset=b"], "subset: only a data set has one"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(words: list[str], line: str) -> None:
    with pytest.raises(InstantiationException, match=line):
        source("file", "path=x.jsonl", *words)
