"""Mistakes in files of prompts and of answers from elsewhere, and in what they are taken for."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_inputs import Bad, Given, Setting

READ = "iter=1 only=it1/prompts"
"""Ends the run where the prompts of the first iteration are read."""
GOOD: list[dict[str, Any]] = [{"prompt": f"good prompt {number}"} for number in range(4)]
HI = {"role": "user", "content": "hi"}
HO = {"role": "assistant", "content": "ho"}
SYSTEM = {"role": "system", "content": "be brief"}
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + m['content'] + '<|im_end|>' }}{% endfor %}"
)
"""As Gemma's and Mistral's templates have it."""


def lines(*rows: Any) -> bytes:
    """Three good prompts, then `rows`: objects, or text as it is."""
    texts = [row if isinstance(row, str) else json.dumps(row) for row in (*GOOD[:3], *rows)]
    return "\n".join([*texts, ""]).encode()


def file(content: bytes, name: str = "part0.jsonl") -> Given:
    """A file of prompts; the tiny run reads part0.jsonl as its first part."""

    def given(setting: Setting) -> list[str]:
        (setting.at / name).write_bytes(content)
        if name == "part0.jsonl":
            return []
        return [f"data.parts=[{setting.at / name}]"]

    return given


def read(what: str, given: Given, told: str) -> Bad:
    return Bad(what, READ, told, 2, given, verb="run")


MEND = "a line is one object {column: value}: mend it or delete it"
NO_COLUMN = (
    "no column 'prompt' or 'messages'; name the one that holds the prompt in data.prompt or data.messages (data=local)"
)


def closed(setting: Setting) -> None:
    """Root may read everything, so the answer of the system is played."""
    file(lines(GOOD[3]))(setting)
    access = os.access

    def no_access(path: Any, mode: int, **more: Any) -> bool:
        return not str(path).endswith("part0.jsonl") and access(path, mode, **more)

    setting.patch.setattr(os, "access", no_access)


def empty_folder(setting: Setting) -> list[str]:
    (setting.at / "mine").mkdir()
    return [f"data.parts=[{setting.at / 'mine'}]"]


def parquet(change: Callable[[bytearray], None]) -> Given:
    """Two thousand prompts whose bytes are changed afterwards."""

    def given(setting: Setting) -> list[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"prompt": ["hi"] * 2000}), setting.at / "mine.parquet")
        content = bytearray((setting.at / "mine.parquet").read_bytes())
        change(content)
        (setting.at / "mine.parquet").write_bytes(content)
        return [f"data.parts=[{setting.at / 'mine.parquet'}]"]

    return given


def end_cut_off(content: bytearray) -> None:
    del content[-20:]


def middle_cleared(content: bytearray) -> None:
    content[10:60] = bytes(50)


UNKNOWN = "the name of a file ends in .jsonl, .parquet, .csv; unpack it or convert it"
NO_UTF8 = "not UTF-8 (…); save the file as UTF-8"
EMPTY = "…/part0.jsonl: no prompts in it; is it the right file?"
FILES = [
    read("an empty file", file(b""), EMPTY),
    read("a file of empty lines", file(b"\n\n\r\n"), EMPTY),
    read("a file of white space", file(b"   \n" * 4), "…/part0.jsonl:1: an empty line; delete it"),
    read(
        "too few prompts",
        file(lines()),
        "data.prompts_per_iteration: …/part0.jsonl has 3 prompts, 1 to 4 are asked for; lower it",
    ),
    read(
        "a file in Latin-1",
        file(lines('{"prompt": "caf\xe9"}').decode().encode("latin-1")),
        f"…/part0.jsonl:4: {NO_UTF8}",
    ),
    read("a file in UTF-16", file(lines(GOOD[3]).decode().encode("utf-16")), f"…/part0.jsonl:1: {NO_UTF8}"),
    read(
        "a file in UTF-16 without a mark",
        file(lines(GOOD[3]).decode().encode("utf-16-le")),
        "…/part0.jsonl:1: NUL bytes in it, as UTF-16 has them; save the file as UTF-8",
    ),
    read(
        "a JSON document in place of lines",
        file(json.dumps(GOOD, indent=1).encode()),
        f"…/part0.jsonl:1: not JSON (Expecting value at column 2); {MEND}",
    ),
    read(
        "a compressed file",
        file(gzip.compress(lines(GOOD[3])), "mine.jsonl.gz"),
        f"data.parts: …/mine.jsonl.gz: {UNKNOWN}",
    ),
    read(
        "a compressed file under another name",
        file(gzip.compress(lines(GOOD[3]), mtime=0)),
        f"…/part0.jsonl:1: {NO_UTF8}",
    ),
    read("a name that says no format", file(lines(GOOD[3]), "mine.txt"), f"data.parts: …/mine.txt: {UNKNOWN}"),
    read(
        "a folder without a file of prompts",
        empty_folder,
        "data.parts: no file in …/mine ends in .jsonl, .parquet, .csv; a folder laid out as a data set needs a split",
    ),
    read("a file that may not be read", closed, "data.parts: …/part0.jsonl: cannot be read; is it yours?"),
    read(
        "Parquet that is cut off", parquet(end_cut_off), "…/mine.parquet: not readable as Parquet (…); write it again"
    ),
    read(
        "Parquet that is damaged",
        parquet(middle_cleared),
        "…/mine.parquet: not readable as Parquet after row 0 (…); write it again",
    ),
    read(
        "CSV with an open quote",
        file(b'prompt\na\nb\nc\n"d\n', "mine.csv"),
        "…/mine.csv:5: not CSV (unexpected end of data); is a quote open, or not doubled inside a cell?",
    ),
    read(
        "CSV with a comma that is not quoted",
        file(b"prompt,source\na,x\nb,x\nc,x\nd,e,x\n", "mine.csv"),
        "…/mine.csv:5: 3 cells, but 2 columns; quote cells that hold a comma",
    ),
    read(
        "CSV with two columns of one name",
        file(b"prompt,prompt\na,a\nb,b\nc,c\nd,d\n", "mine.csv"),
        "…/mine.csv:1: two columns are named 'prompt'; rename one",
    ),
    read("CSV without a header", file(b"a\nb\nc\nd\ne\n", "mine.csv"), f"…/mine.csv:2: {NO_COLUMN}"),
]


def held_out_again(setting: Setting) -> None:
    """The same prompts but for capital letters and spaces."""
    (setting.at / "held_out.jsonl").write_bytes(b'{"prompt": "a"}\n' * 6)
    (setting.at / "part0.jsonl").write_bytes(b'{"prompt": " A "}\n' * 4)


def local(content: bytes, *words: str) -> Given:
    """data=local of a file; its tiny run has no other keys of data."""

    def given(setting: Setting) -> list[str]:
        (setting.at / "mine.jsonl").write_bytes(content)
        return [f"data.path={setting.at / 'mine.jsonl'}", *words]

    return given


def strict(part: str, turns: list[dict[str, str]]) -> Given:
    """A policy with a template like Gemma's and Mistral's, and a chat in one of the files."""

    def given(setting: Setting) -> list[str]:
        folder = Path(shutil.copytree(setting.model, setting.at / "strict"))
        (folder / "chat_template.jinja").write_text(STRICT)
        (setting.at / part).write_bytes(lines({"messages": turns}, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}))
        return [f"model.repo={folder}"]

    return given


REFUSED = "…/strict: its chat template refuses"
REMEDY = "mend the prompt, or name a model whose template takes it"
TOGETHER = [
    read(
        "prompts that are all held out",
        held_out_again,
        "…/part0.jsonl: no prompts are left for this part; the line above says why",
    ),
    Bad(
        "a system turn that the template refuses",
        "iter=1 only=it1/responses",
        f"prompt … of part0 ('hi'…): {REFUSED} system/user: System role not supported; {REMEDY}",
        2,
        strict("part0.jsonl", [SYSTEM, HI]),
        ("policy", "prompts"),
        "run",
    ),
    Bad(
        "turns that do not alternate, in the prompts of a later iteration",
        "iter=2",
        f"prompt … of part1 ('hi'…): {REFUSED} user/user: Conversation roles must alternate …; {REMEDY}",
        2,
        strict("part1.jsonl", [HI, HI]),
        ("policy", "policy", "prompts", "prompts", "prompts"),
        "run",
    ),
    Bad(
        "a broken line in the prompts of a later iteration",
        "iter=3",
        f"…/part2.jsonl:4: not JSON (Expecting value at column 1); {MEND}",
        2,
        lambda setting: (setting.at / "part2.jsonl").write_bytes(lines("what?")) and None,
        ("policy", "prompts", "prompts", "prompts"),
        "run",
    ),
    Bad(
        "a column that is not in the file",
        "iter=1 only=it1/prompts data=local data.prompt=question data.held_out_prompts=1 held_out.divergence_prompts=1",
        "…/mine.jsonl:1: no column 'question'; name the one that holds the prompt in data.prompt or data.messages (data=local)",
        2,
        local(lines(*GOOD)),
        verb="",
    ),
    Bad(
        "two columns for the prompt",
        "data=local data.prompt=a data.messages=b",
        "data: prompt and messages: name one of them, and leave the other null",
        2,
    ),
    Bad(
        "all of it held out",
        "data=local data.held_out_share=1.0",
        "data: held_out_share: 1.0 leaves nothing to ask or to hold out",
        2,
    ),
    Bad(
        "a split of a file",
        "data=local data.split=train",
        "data.path: …/mine.jsonl is one file and has no split 'train'; leave the split null",
        2,
        local(lines()),
    ),
    Bad(
        "a subset without a split",
        "data=local data.subset=en",
        "data: subset: only a data set has one; name its split too",
        2,
    ),
]
