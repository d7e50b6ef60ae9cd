"""A run whose store cannot be opened is refused in one line and leaves its run folder as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import World

LOST: dict[str, Callable[[Path], Any]] = {
    "a file": lambda store: store.write_text("not a folder"),
    "a dangling link": lambda store: store.symlink_to("/nowhere/store"),
    "empty, as an unmounted disk is": lambda store: store.mkdir(),
}
"""Mistakes in what is there are rows of tests/bad_inputs.md."""


def contents(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def test_report_and_links_stay(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    before, store = contents(world.place / "runs"), world.place / "store"
    store.rename(world.place / "kept")
    for name, spoil in LOST.items():
        spoil(store)
        capsys.readouterr()
        assert world.run("iter=2") == 2, name
        error = capsys.readouterr().err
        assert error.startswith("error: ") and str(store) in error and error.count("\n") == 1, error
        assert contents(world.place / "runs") == before, name
        store.rename(world.place / name)
    (world.place / "kept").rename(store)
    assert world.run("iter=2") == 0
    assert contents(world.place / "runs") == before
