"""`verify` and `clean`: what they say is what is there, nothing goes that is in use, nothing where they cannot know."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import call, folders
from toy_stages import Shares, Steps
from toy_store import CHAIN, store, tree  # noqa: F401

from src.experiment.run_folder import LINKS, link
from src.kernel.artifact import Node
from src.kernel.disk import turn
from src.kernel.record import RECORD
from src.kernel.store import MARK, Store

# ruff: noqa: F811

Capture = pytest.CaptureFixture[str]


def test_verify_names_damaged_files_and_writes_nothing(store: Store, tmp_path: Path, capsys: Capture) -> None:
    before = tree(tmp_path)
    assert call("verify", *folders(tmp_path)) == 0
    assert capsys.readouterr().out == f"3 artifacts in {store.root}, all whole\n"
    assert tree(tmp_path) == before
    assert call("verify", f"store={tmp_path / 'runs'}") == 2, "another folder is no empty store"
    a, b, c = (store.path(node) for node in CHAIN)
    os.truncate(a / "text.txt", 10)
    (b / RECORD).write_bytes(b"\xff\x00")
    (c / "deep" / "empty.bin").unlink()
    assert call("verify", *folders(tmp_path)) == 3
    lines = capsys.readouterr().out
    assert all(f"{file}: " in lines for file in (a / "text.txt", b / RECORD, c / "deep/empty.bin"))
    assert f"3 artifacts in {store.root}, 3 problems\n" in lines


# What `clean` removes ----------------------------------------------------------------------------------------------


def test_clean_lists_what_no_run_links_to_with_its_size_and_removes_it_with_yes(
    store: Store, tmp_path: Path, capsys: Capture
) -> None:
    """The unused artifact has 1.5 million characters, and as many in the config of its record."""
    before = tree(tmp_path)
    assert call("clean", *folders(tmp_path)) == 0
    first, _ = capsys.readouterr().out.splitlines()
    assert first.split() == ["3.0", "MB", str(store.path(CHAIN[0]))]
    assert tree(tmp_path) == before
    for last in ("1 folder removed", f"nothing unused in {store.root}"):
        assert call("clean", *folders(tmp_path), "--yes", "seed=1") == 0
        assert capsys.readouterr().out.splitlines()[-1] == last
        assert sorted(store.artifacts()) == sorted(store.path(node) for node in CHAIN[1:])
    assert call("verify", *folders(tmp_path)) == 0


def test_leftovers_of_a_crash_are_unused(store: Store, tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(RuntimeError):
        store.make(Node("x", Steps(fails_at=2)))
    (leftover,) = store.leftovers()
    (unmarked := store.path(CHAIN[1]) / RECORD).unlink()
    shutil.copy(store.path(CHAIN[2]) / RECORD, leftover)  # the crash came after the record, before the rename
    assert call("clean", *folders(tmp_path), "--yes") == 0
    assert sum(str(leftover) in line for line in capsys.readouterr().out.splitlines()) == 1
    assert not leftover.exists() and not unmarked.parent.exists()


def test_cells_that_no_run_uses_go_and_those_of_an_unfinished_artifact_stay(tmp_path: Path) -> None:
    """Of three groups of cells, one is a run's, one is nobody's, one is of an artifact that was killed."""
    store = Store(tmp_path / "store")
    mine, nobodys, killed = (
        Node(f"it1/{group}", Shares(name="a", group=group, fails=group == "killed"))
        for group in ("mine", "nobodys", "killed")
    )
    store.make(mine)
    store.make(nobodys)
    with pytest.raises(RuntimeError, match="pulled"):
        store.make(killed)
    link(tmp_path / "runs" / "mine", mine, store)
    assert call("clean", *folders(tmp_path), "--yes") == 0
    assert {*store.cell_folders()} == {store.cells(mine), store.cells(killed)}


# What `clean` keeps ------------------------------------------------------------------------------------------------


def test_clean_keeps_what_a_process_is_making(store: Store, tmp_path: Path, capsys: Capture) -> None:
    made = store.path(CHAIN[0])
    with turn(store.root / ".locks" / f"{made.parent.name}-{made.name}.lock", "it"):
        for words in ([], ["--yes"]):
            assert call("clean", *folders(tmp_path), *words) == 0
            first, last = capsys.readouterr().out.splitlines()
            assert "kept: a process is making it" in first and last.startswith("0 folders")
    assert store.has(CHAIN[0])


def test_clean_keeps_what_a_lock_guards_that_it_may_not_read(
    store: Store, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is another user's; the tests may run as root, who reads everything."""
    opened = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.suffix == ".lock":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert call("clean", *folders(tmp_path), "--yes") == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.endswith("or its lock may not be read") and last == "0 folders removed"
    assert store.has(CHAIN[0])


def test_a_run_folder_may_lie_elsewhere_and_an_artifact_behind_a_link_stays(store: Store, tmp_path: Path) -> None:
    unused = store.path(CHAIN[0])
    outside = shutil.copytree(unused, tmp_path / "outside" / ("0" * 20))
    (unused.parent / ("c" * 20)).symlink_to(outside)
    (tmp_path / "far" / "theirs" / LINKS).mkdir(parents=True)
    (tmp_path / "far" / "theirs" / LINKS / "a").symlink_to(store.path(CHAIN[2]))
    (tmp_path / "runs" / "group").symlink_to(tmp_path / "far")
    (tmp_path / "runs" / "mine" / LINKS / CHAIN[2].name).unlink()
    assert call("clean", *folders(tmp_path), "--yes") == 0
    assert not unused.exists(), "what no run uses goes"
    assert store.has(CHAIN[2]) and (outside / RECORD).exists()


def test_runs_that_were_moved_or_copied_use_what_they_used(store: Store, tmp_path: Path) -> None:
    """A link that was moved leads nowhere. Where a copy followed links, artifacts lie under other names."""
    shutil.copytree(tmp_path / "runs", tmp_path / "copied")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "runs").rename(tmp_path / "deeper" / "runs")
    for runs in (tmp_path / "deeper" / "runs", tmp_path / "copied"):
        assert call("clean", f"store={store.root}", f"runs={runs}", "--yes") == 0
        assert sorted(store.artifacts()) == sorted(store.path(node) for node in CHAIN[1:])


def report_without_links(place: Path) -> None:
    (place / "runs" / "other").mkdir()
    (place / "runs" / "other" / "report.md").write_text("# A run")


SPOILED: dict[str, Callable[[Path], object]] = {
    "no folder of runs": lambda place: shutil.rmtree(place / "runs"),
    "no run with artifacts of this store": lambda place: shutil.rmtree(place / "runs" / "mine"),
    "a link that leads nowhere": lambda place: (place / "runs" / "mine" / LINKS / "x").symlink_to(place / "lost"),
    "a run that is lost": lambda place: (place / "runs" / "other").symlink_to(place / "lost"),
    "a run without links": report_without_links,
    "a store without its mark": lambda place: (place / "store" / MARK).unlink(),
}


@pytest.mark.parametrize("case", SPOILED)
def test_where_it_cannot_know_it_removes_nothing(case: str, store: Store, tmp_path: Path, capsys: Capture) -> None:
    SPOILED[case](tmp_path)
    before = tree(tmp_path)
    assert call("clean", *folders(tmp_path), "--yes") == 2
    assert capsys.readouterr().err.startswith(("error: runs: ", "error: store: "))
    assert tree(tmp_path) == before
