"""verify and clean: what they say is what is there, and nothing goes that is in use."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from unittest import mock

import pytest
from tiny_run import call, folders
from toy_stages import Shares, Steps
from toy_store import CHAIN, store, tree  # noqa: F401

from src.experiment.run_folder import link
from src.kernel.artifact import Node
from src.kernel.disk import turn
from src.kernel.record import RECORD
from src.kernel.store import Store

# ruff: noqa: F811

Capture = pytest.CaptureFixture[str]


# verify ------------------------------------------------------------------------------------------------------------


def test_a_whole_store_is_called_whole(store: Store, tmp_path: Path, capsys: Capture) -> None:
    before = tree(tmp_path)
    assert call("verify", *folders(tmp_path)) == 0
    assert capsys.readouterr().out == f"3 artifacts in {store.root}, all whole\n"
    assert tree(tmp_path) == before
    shutil.rmtree(store.root)
    store.root.mkdir()
    assert call("verify", *folders(tmp_path)) == 0
    assert capsys.readouterr().out.startswith("0 artifacts")


def test_damaged_files_are_named_and_the_exit_code_is_3(store: Store, tmp_path: Path, capsys: Capture) -> None:
    a, b, c = (store.path(node) for node in CHAIN)
    os.truncate(a / "text.txt", 10)
    (b / RECORD).write_bytes(b"\xff\x00")
    (c / "deep" / "empty.bin").unlink()
    assert call("verify", *folders(tmp_path)) == 3
    shown = capsys.readouterr().out
    for file in (a / "text.txt", b / RECORD, c / "deep/empty.bin"):
        assert f"{file}: " in shown
    assert f"3 artifacts in {store.root}, 3 problems\n" in shown


# clean -------------------------------------------------------------------------------------------------------------


def test_clean_lists_what_no_run_links_to_with_its_size_and_removes_nothing(
    store: Store, tmp_path: Path, capsys: Capture
) -> None:
    """1.5 million characters, and as many in the config of its record."""
    before = tree(tmp_path)
    assert call("clean", *folders(tmp_path)) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.split() == ["3.0", "MB", str(store.path(CHAIN[0]))]
    assert last == f"1 folders unused by the runs in {tmp_path / 'runs'}; `clean --yes` removes them"
    assert tree(tmp_path) == before


def test_clean_yes_removes_what_it_lists_and_nothing_else(store: Store, tmp_path: Path, capsys: Capture) -> None:
    words = ["seed=1", "--yes"]
    assert call("clean", *folders(tmp_path), *words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 folders removed"
    assert sorted(store.artifacts()) == sorted(store.path(node) for node in CHAIN[1:])
    assert call("verify", *folders(tmp_path)) == 0
    assert call("clean", *folders(tmp_path), *words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"nothing unused in {store.root}"


def test_leftovers_of_a_crash_are_unused(store: Store, tmp_path: Path, capsys: Capture) -> None:
    node = Node("x", Steps(fails_at=2))
    with pytest.raises(RuntimeError):
        store.make(node)
    (leftover,) = store.leftovers()
    (unmarked := store.path(CHAIN[1]) / RECORD).unlink()
    shutil.copy(store.path(CHAIN[2]) / RECORD, leftover)  # the crash came after the record, before the rename
    assert call("clean", *folders(tmp_path), "--yes") == 0
    assert sum(str(leftover) in line for line in capsys.readouterr().out.splitlines()) == 1
    assert not leftover.exists() and not unmarked.parent.exists()


def test_clean_keeps_what_a_process_is_making(store: Store, tmp_path: Path, capsys: Capture) -> None:
    made = store.path(CHAIN[0])
    with turn(store.root / ".locks" / f"{made.parent.name}-{made.name}.lock", "it"):
        for words, total in ((["--yes"], "0 folders removed"), ([], "0 folders unused by the runs in .*")):
            assert call("clean", *folders(tmp_path), *words) == 0
            first, last = capsys.readouterr().out.splitlines()
            assert first.endswith("kept: a process is making it") and re.match(total, last)
    assert store.has(CHAIN[0])


def test_listing_leaves_no_trace_and_passes_over_locks_it_may_not_read(
    store: Store, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(store.root / ".locks", ignore_errors=True)
    before = sorted(tmp_path.rglob("*"))
    assert call("clean", *folders(tmp_path)) == 0
    listed = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before and "kept" not in listed
    monkeypatch.setattr("src.launch.housekeeping.is_held", mock.Mock(side_effect=PermissionError))
    assert call("clean", *folders(tmp_path)) == 0
    assert capsys.readouterr().out == listed


def test_a_name_that_leads_out_of_the_folder_of_runs_is_refused(tmp_path: Path, capsys: Capture) -> None:
    """Anywhere else `clean` does not find its links and would remove what it uses."""
    for name in ("name=mine/again", "name=../out", "name=/out", "name=.", "model.name=me/again", "method.name=../me"):
        assert call("plan", *folders(tmp_path), name) == 2
        assert name.split("=")[0] in capsys.readouterr().err


def test_a_store_or_a_folder_of_runs_that_is_not_there_is_a_mistake(tmp_path: Path, capsys: Capture) -> None:
    for verb in ("verify", "clean"):
        assert call(verb, *folders(tmp_path)) == 2
        assert capsys.readouterr().err.startswith("error: store: no folder")
    (tmp_path / "store").mkdir()
    assert call("clean", *folders(tmp_path), "--yes") == 2, "no link could be seen"
    assert capsys.readouterr().err.startswith("error: runs: no folder")


def test_scores_that_no_run_uses_are_listed_and_those_of_an_unfinished_artifact_stay(
    tmp_path: Path, capsys: Capture
) -> None:
    """Three groups of cells: of a run, of nobody, of an artifact that was killed."""
    store = Store(tmp_path / "store")
    ours, nobodys, killed = (
        Node(f"it1/{group}", Shares(name="a", group=group, fails=group == "killed"))
        for group in ("ours", "nobodys", "killed")
    )
    store.make(ours)
    store.make(nobodys)
    with pytest.raises(RuntimeError, match="pulled"):
        store.make(killed)
    link(tmp_path / "runs" / "mine", ours, store)
    folders_of = {
        group: store.cells(node) for group, node in (("ours", ours), ("nobodys", nobodys), ("killed", killed))
    }
    assert (unused := folders_of["nobodys"]) is not None
    with turn(unused / ".lock", "it"):
        assert call("clean", *folders(tmp_path)) == 0
        assert f"{unused}  kept: a process is making it" in capsys.readouterr().out
    for words, left in (((), 3), (("--yes",), 2)):
        assert call("clean", *words, *folders(tmp_path)) == 0
        listed = [line for line in capsys.readouterr().out.splitlines() if "/.cells/" in line]
        assert len(listed) == 1 and str(folders_of["nobodys"]) in listed[0]
        assert len(store.cell_folders()) == left
    assert store.cell_folders() == sorted(path for group, path in folders_of.items() if path and group != "nobodys")
