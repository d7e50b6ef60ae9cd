"""What a table of bad input has in a row, and the page of documentation that is made of the tables.

A row is run by tests/experiment/test_bad_input.py and shown in docs/bad_input.md, so the page cannot say what is not so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

REST = "…"
"""In a row: what differs from one to the next, such as a path."""


class Setting(NamedTuple):
    """What a row may arrange before its command: files below `at`, servers until `stack` ends, the environment."""

    at: Path
    model: Path
    """A tiny policy with its tokenizer; copy it before you change it."""
    patch: pytest.MonkeyPatch
    stack: ExitStack


Given = Callable[[Setting], list[str] | None]
"""Arranges it; returns words of the command that the row cannot know, such as the address of a server."""


class Bad(NamedTuple):
    """A mistake, the words of the command that hold it, and the line that tells it."""

    what: str
    words: str
    told: str
    """All that stands behind `error: `; `…` for what differs."""
    code: int = 2
    given: Given | None = None
    made: tuple[str, ...] = ()
    """Kinds of the artifacts that were finished before it was found."""
    verb: str = "plan"
    """`run` is the tiny run of tests/lib/tiny_run.py; any other verb begins the command, and none is none."""
    begun: tuple[str, ...] = ()
    """Kinds of unfinished ones, whose work so far the next try uses."""

    def matches(self, line: str) -> bool:
        return bool(re.fullmatch(".+".join(map(re.escape, self.told.split(REST))), line))


class Fine(NamedTuple):
    """What looks like a mistake and is none."""

    what: str
    happens: str
    prompt: str | None = None
    """All rows that have one share a tiny run, which gives it back as it was; the others have one of their own."""
    words: str = ""
    given: Given | None = None


class Table(NamedTuple):
    title: str
    about: str
    rows: list[Bad]
    fine: tuple[Fine, ...] = ()


HEAD = """# Bad input

A mistake is told in one line that begins with `error: ` and names the key or the file and what to do. The exit code is 2 for a
mistake of yours and 3 for a failure of the machine, of a server or of the store. No file of yours is changed. Where nothing was to be made (`plan`, `verify`,
`clean`, `status` and the like), nothing is written. A run leaves what the next try uses, and no more: whole artifacts, the work that was done for one that was
begun, locks and the mark of the store, and in its run folder the command, its config, links to the artifacts and their metrics. `debug=true` shows where it
rose. `…` stands for what differs.

Each row is run as the real command by tests/experiment/test_bad_input.py, and this page is made of the same rows (`make golden`).
"""


def page(tables: list[Table]) -> str:
    """Markdown of all tables."""
    return "\n".join([HEAD, *(_section(table) for table in tables)])


def _section(table: Table) -> str:
    rows = [f"| {cell(row.what)} | {code(row.words)} | {code(row.told)} | {row.code} |" for row in table.rows]
    parts = [f"## {table.title}\n", f"{table.about}\n", "| mistake | words | what is told | code |", "|-|-|-|-|", *rows]
    if table.fine:
        parts += ["\n| no mistake | what happens |", "|-|-|"]
        parts += [f"| {cell(row.what)} | {cell(row.happens)} |" for row in table.fine]
    return "\n".join([*parts, ""])


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def code(text: str) -> str:
    return f"`` {cell(text)} ``" if "`" in text else f"`{cell(text)}`" if text else ""
