"""The rows of tests/bad_inputs.md, and what arranges the mistakes that words alone do not make."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_run import ROOT

PAGE = ROOT / "tests" / "bad_inputs.md"


class Setting(NamedTuple):
    """What may be arranged before a command: files below `at`, servers until `stack` ends, the environment."""

    at: Path
    model: Path
    """A tiny policy with its tokenizer; copy it before you change it."""
    patch: pytest.MonkeyPatch
    stack: ExitStack


Given = Callable[[Setting], list[str] | None]
"""Arranges it; returns words of the command that the page cannot know, such as the address of a server."""


class Bad(NamedTuple):
    """A mistake, the words of the command that hold it, and the line that tells it."""

    what: str
    words: list[str]
    told: str
    """All that stands behind `error: `; `…` for what differs, such as a path."""
    code: int
    made: list[str]
    """Kinds of the artifacts that were finished before it was found."""
    begun: list[str]
    """Kinds of unfinished ones, whose work so far the next try uses."""

    def matches(self, line: str) -> bool:
        return bool(re.fullmatch(".+".join(map(re.escape, self.told.split("…"))), line))


class Section(NamedTuple):
    bad: list[Bad]
    fine: list[str]
    """What looks like a mistake and is none."""


def sections() -> dict[str, Section]:
    """Of the page, by their titles."""
    found = {}
    for part in PAGE.read_text().split("\n## ")[1:]:
        rows = [cells(line) for line in part.splitlines() if line.startswith("| ")]
        bad = [_bad(row) for row in rows if len(row) == 5 and row[0] != "mistake"]
        fine = [row[0] for row in rows if len(row) == 2 and row[0] != "no mistake"]
        found[part.partition("\n")[0]] = Section(bad, fine)
    return found


def cells(line: str) -> list[str]:
    """Of a line of a table, without the quotes of code."""
    found = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    return [cell.strip("`").strip() if cell.startswith("`") and cell.endswith("`") else cell for cell in found]


def _bad(row: list[str]) -> Bad:
    what, words, told, code, kept = row
    made, _, begun = kept.partition("; begun: ")
    counted = [kind.partition(" ×") for kind in made.split(", ") if kind]
    kinds = [kind for kind, _, times in counted for _ in range(int(times or 1))]
    return Bad(what, shlex.split(words), told, int(code), kinds, [begun] if begun else [])
