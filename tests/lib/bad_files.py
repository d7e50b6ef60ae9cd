"""Mistakes in files of prompts and of answers from elsewhere, and what is none however odd it looks."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

from bad_inputs import Given, Setting

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
    """A file of prompts; the tiny run reads part0.jsonl, part1.jsonl … as its parts."""

    def given(setting: Setting) -> list[str]:
        (setting.at / name).write_bytes(content)
        return [] if name.startswith("part") else [f"data.parts=[{setting.at / name}]"]

    return given


def damaged_parquet(setting: Setting) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": ["hi"] * 2000}), setting.at / "mine.parquet")
    content = bytearray((setting.at / "mine.parquet").read_bytes())
    content[10:60] = bytes(50)
    return file(bytes(content), "mine.parquet")(setting) or []


def held_out_again(setting: Setting) -> None:
    """The same prompts but for capital letters and spaces."""
    (setting.at / "held_out.jsonl").write_bytes(b'{"prompt": "a"}\n' * 6)
    (setting.at / "part0.jsonl").write_bytes(b'{"prompt": " A "}\n' * 4)


def strict(part: str, turns: list[dict[str, str]]) -> Given:
    """A policy with a template like Gemma's and Mistral's, and a chat in one of the files."""

    def given(setting: Setting) -> list[str]:
        folder = Path(shutil.copytree(setting.model, setting.at / "strict"))
        (folder / "chat_template.jinja").write_text(STRICT)
        (setting.at / part).write_bytes(lines({"messages": turns}, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}))
        return [f"model.repo={folder}"]

    return given


def answers(*rows: Any) -> Given:
    """Answers from elsewhere; the tiny run asks `part 0 0: …`, so `good prompt 0` is to be asked too."""

    def given(setting: Setting) -> list[str]:
        file(lines(GOOD[3]))(setting)
        (setting.at / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [f"data.answers.mine.path={setting.at / 'answers.jsonl'}"]

    return given


ROWS: dict[str, Any] = {
    "a line of broken JSON": '{"prompt": "hi"',
    "a line that is a list": '["hi"]',
    "brackets without end": "[" * 100_000,
    "other columns": {"question": "hi"},
    "an empty prompt": {"prompt": ""},
    "half of a character": '{"prompt": "\\ud800"}',
    "a content that is a number": {"messages": [HI | {"content": 3}]},
    "messages that end in an answer": {"messages": [HI, HO]},
}
"""The fourth row of JSON lines."""
ANSWER = {"prompt": "good prompt 0", "answer": "yes"}
DATA: dict[str, Given] = {
    **{what: file(lines(row)) for what, row in ROWS.items()},
    "an empty file": file(b""),
    "too few prompts": file(lines()),
    "a file in Latin-1": file(lines('{"prompt": "caf\xe9"}').decode().encode("latin-1")),
    "a compressed file": file(gzip.compress(lines(GOOD[3])), "mine.jsonl.gz"),
    "Parquet that is damaged": damaged_parquet,
    "prompts that are all held out": held_out_again,
    "a system turn that the template refuses": strict("part0.jsonl", [SYSTEM, HI]),
    "a broken line in the prompts of a later iteration": file(lines("what?"), "part2.jsonl"),
    "answers to other prompts": answers({"prompt": "who?", "answer": "me"}),
    "answers in another column": answers(ANSWER, {"prompt": "good prompt 1", "reply": "yes"}),
    "an id of a prompt that is none": answers({"id": 7, "answer": "yes"}),
}
ODD_PROMPTS = {
    "text from right to left": "ما هي عاصمة مصر؟ \u200fשלום",
    "emoji, also of several characters": "what is 👩‍👩‍👧‍👦 and 🇪🇺? \U0001f9d1\U0001f3fd\u200d\U0001f680",
    "zero-width characters": "a\u200bb\u200cc\u200dd\ufeffe",
    "NUL and other control characters, escaped": "a\x00b\x07c\x1bd\x7f",
    "line ends of every kind": "a\u2028b\u2029c\x85d\r\ne\x0bf\x0cg",
    "special tokens and nothing else": "<|im_end|><|im_start|><|im_end|>",
    "letters and their accents apart": "e\u0301 a\u030a ﬁ Å",
    "a private character that we use ourselves": "\ue000 1\ue001 <|im_end|>",
    "a prompt of a million characters": "word " * 200_000,
    "Chinese, whose words have no spaces": "中国的首都是哪里？",
}
READ = "iter=1 only=it1/prompts"
FINE: dict[str, tuple[str, Given]] = {
    "the same prompt twice": (READ, file(lines(GOOD[0], GOOD[1]))),
    "a mark of UTF-8 in front": (READ, file(b"\xef\xbb\xbf" + lines(GOOD[3]))),
    "Windows' line ends": (READ, file(lines(GOOD[3]).replace(b"\n", b"\r\n"))),
    "empty lines at the end": (READ, file(lines(GOOD[3]) + b"\n\n")),
    "answers to other prompts beside those to ours, and a prompt answered twice": (
        "iter=1 only=it1/outside_mine +answers@data.answers.mine=file",
        answers(ANSWER, ANSWER, ANSWER | {"prompt": "who?"}),
    ),
}
