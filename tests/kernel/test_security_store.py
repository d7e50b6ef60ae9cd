"""Nothing outside the store is removed or written, and a store that a group shares stays one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import call, folders
from toy_stages import Copy, Rows, Steps

from src.experiment.run_folder import LINKS, link
from src.kernel.artifact import WORK, Node
from src.kernel.cells import CELLS
from src.kernel.disk import turn
from src.kernel.record import RECORD
from src.kernel.store import MARK, Store

KEY = "0123456789abcdef0123"
CHAIN = [Node("it1/a", Copy(text="unused")), Node("it1/b", Rows(count=1))]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two artifacts, of which a run has the second."""
    store = Store(tmp_path / "store")
    for node in CHAIN:
        store.make(node)
    link(tmp_path / "runs" / "mine", CHAIN[1], store)
    return store


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Somebody's own: folders that look like an artifact, a leftover and cells of ours, but for their place."""
    place = tmp_path / "outside"
    for name in (KEY, f"{KEY}.partial-01234567", f"policy-{KEY}"):
        (place / name / WORK).mkdir(parents=True)
        (place / name / "precious.txt").write_text("precious")
        (place / name / ".lock-mine").write_text("precious")
    (place / KEY / RECORD).write_text("{}")
    return place


def contents(place: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in place.rglob("*") if path.is_file()}


PLANTED: dict[str, Callable[[Path, Path], None]] = {
    "a kind that is a link": lambda store, out: (store / "policy").symlink_to(out),
    "an artifact that is a link": lambda store, out: (store / "copy" / ("f" * 20)).symlink_to(out / KEY),
    "a leftover that is a link": lambda store, out: (store / "copy" / f"{'f' * 20}.partial-01234567").symlink_to(out),
    "cells that are a link": lambda store, out: linked(store / ".cells", "x-1", out),
    "all cells a link": lambda store, out: (store / ".cells").symlink_to(out),
    "work that is a link": lambda store, out: leftover(store, lambda own: (own / WORK).symlink_to(out)),
    "cells of a leftover": lambda store, out: leftover(store, lambda own: linked(own / WORK, CELLS, out / KEY)),
    "a file of an artifact": lambda store, out: leftover(store, lambda own: (own / "deep").symlink_to(out)),
}


def linked(folder: Path, name: str, target: Path) -> None:
    folder.mkdir()
    (folder / name).symlink_to(target)


def leftover(store: Path, fill: Callable[[Path], None]) -> None:
    """What a kill left, begun in the store."""
    own = store / "copy" / f"{KEY}.partial-89abcdef"
    own.mkdir()
    (store / ".locks" / f"copy-{KEY}.lock").touch()
    fill(own)


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_clean_follows_no_link_out_of_the_store(
    plant: Callable[[Path, Path], None], store: Store, outside: Path, tmp_path: Path
) -> None:
    plant(store.root, outside)
    before = contents(outside)
    assert call("clean", *folders(tmp_path), "--yes") == 0
    assert contents(outside) == before
    assert not store.path(CHAIN[0]).exists() and store.has(CHAIN[1]), "the rest of its work is done"


def test_a_store_among_foreign_files_loses_its_own_alone(outside: Path, tmp_path: Path) -> None:
    """Such as store=$HOME: what only has a name like ours was not begun there."""
    (tmp_path / MARK).touch()
    store = Store(tmp_path)
    for node in CHAIN:
        store.make(node)
    link(tmp_path / "runs" / "mine", CHAIN[1], store)
    (outside / KEY / RECORD).unlink()
    before = contents(outside)
    assert call("clean", f"store={tmp_path}", f"runs={tmp_path / 'runs'}", "--yes") == 0
    assert contents(outside) == before and not store.path(CHAIN[0]).exists()


def test_records_and_pointers_lead_nowhere(store: Store, outside: Path, tmp_path: Path) -> None:
    """A record that names files, cells and inputs beyond its folder, and a run's link to what is no artifact."""
    record = store.path(CHAIN[1]) / RECORD
    told = json.loads(record.read_text())
    (tmp_path / "runs" / "mine" / LINKS / "it9").symlink_to(outside)
    (store.root / ".cells" / f"copy-{KEY}").mkdir(parents=True)
    before = contents(outside)
    for key in ("..", "../outside", "policy/../../outside", "/etc", ".", ""):
        told |= {"cells": key, "key": key, "name": key, "kind": key, "inputs": [{"kind": key, "key": key}]}
        told["files"][f"{key}/precious.txt"] = {"bytes": 1, "sha256": "0"}
        record.parent.mkdir(exist_ok=True)
        record.write_text(json.dumps(told))
        assert call("verify", *folders(tmp_path)) == 3
        assert call("clean", *folders(tmp_path), "--yes") == 0
        assert contents(outside) == before and outside.is_dir() and store.root.is_dir()


def test_an_attempt_goes_on_in_no_folder_behind_a_link(store: Store, outside: Path) -> None:
    """Else what is planted for it would be written where the link leads."""
    node = Node("x", Steps())
    final = store.path(node)
    final.parent.mkdir()
    (planted := final.with_name(f"{final.name}.partial-01234567")).symlink_to(outside)
    before = contents(outside)
    store.make(node)
    assert store.has(node) and contents(outside) == before and planted.is_symlink()


def test_a_lock_is_not_taken_through_a_link(store: Store, outside: Path) -> None:
    file = outside / KEY / "precious.txt"
    (lock := store.root / ".locks" / "x.lock").symlink_to(file)
    with pytest.raises(OSError), turn(lock, "x"):
        pass
    assert file.read_text() == "precious"
