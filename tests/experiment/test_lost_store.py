"""A run whose store cannot be opened is refused in one line and leaves its run folder as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_run import World

from src.kernel.store import MARK


def a_file(store: Path) -> None:
    store.write_text("not a folder")


def a_dangling_link(store: Path) -> None:
    store.symlink_to("/nowhere/store")


def of_other_files(store: Path) -> None:
    store.mkdir()
    (store / "thesis.tex").write_text("years of work")


def empty(store: Path) -> None:
    """As an unmounted disk is."""
    store.mkdir()


def with_a_file_for_locks(store: Path) -> None:
    store.mkdir()
    (store / MARK).touch()
    (store / ".locks").write_text("")


def contents(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def test_report_and_links_stay(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    before, runs = contents(world.folder), list((world.place / "runs").iterdir())
    store = world.place / "store"
    store.rename(world.place / "kept")
    for spoil in (a_file, a_dangling_link, empty, of_other_files, with_a_file_for_locks):
        spoil(store)
        capsys.readouterr()
        assert world.run("iter=2") == 2, spoil.__name__
        error = capsys.readouterr().err
        assert error.startswith("error: ") and str(store) in error and error.count("\n") == 1, error
        assert contents(world.folder) == before, spoil.__name__
        assert list((world.place / "runs").iterdir()) == runs
        store.rename(world.place / spoil.__name__)
    (world.place / "kept").rename(store)
    assert world.run("iter=2") == 0
    assert contents(world.folder) == before
