"""Words of a command, one a line of a file that fuzzing changes."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from fuzz_files import text
from fuzzing import Target
from tiny_run import call

from src.compare.select import folders, identity, not_begun, swept
from src.config import UserError
from src.score import take_given

WORDS = "src/../src/*"


def words_in(folder: Path) -> list[str]:
    """As a shell would hand them over: no NUL, any other bytes."""
    (file,) = folder.iterdir()
    return file.read_bytes().replace(b"\0", b"").decode("utf-8", "surrogateescape").split("\n")


def planned(folder: Path) -> object:
    """By the command itself; a line of its answer names the word at fault."""
    said = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = call("plan", *[word for word in words_in(folder) if word and not word.startswith("-")])
    said.seek(0)
    lines = said.read().splitlines()
    assert code in (0, 2), lines
    if code:
        assert len([line for line in lines if line.startswith("error: ")]) == 1 and "Traceback" not in "".join(lines)
        raise UserError("words.txt")
    return code


def compared(folder: Path) -> object:
    value = words_in(folder)[0]
    told = identity(value), swept(value), not_begun(value)
    try:
        return told, folders(value)
    except UserError as error:
        if value == WORDS:  # the example: nothing there is a run folder
            return error
        raise


def scored(folder: Path) -> object:
    return take_given(words_in(folder))


TARGETS = [
    Target("overrides", text("words.txt", "seed=3\nmethod.eta=10\ntrain.lr=1e-6\nname=a"), planned, cost=20, slow=True),
    Target("compare's runs=", text("runs.txt", WORDS), compared, ("runs:",)),
    Target(
        "score's from=", text("from.txt", "benchmark=mt_bench\nfrom=a.jsonl,b.jsonl\nout=c.json"), scored, ("from:",)
    ),
]
