"""Nothing outside the store is removed or written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import call, folders
from toy_stages import Steps
from toy_store import CHAIN, store  # noqa: F401

from src.experiment.run_folder import LINKS
from src.kernel.artifact import WORK, Node
from src.kernel.cells import CELLS
from src.kernel.disk import turn
from src.kernel.record import RECORD
from src.kernel.store import Store

# ruff: noqa: F811

KEY = "0123456789abcdef0123"
UNUSED, USED, _ = CHAIN


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Somebody's folders, which look like an artifact, a leftover and cells of ours, but for their place."""
    place = tmp_path / "outside"
    for name in (KEY, f"{KEY}.partial-01234567", f"policy-{KEY}"):
        (place / name / WORK).mkdir(parents=True)
        (place / name / "precious.txt").write_text("precious")
    (place / KEY / RECORD).write_text("{}")
    return place


def contents(place: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in place.rglob("*") if path.is_file()}


LEFT = f"copy/{KEY}.partial-89abcdef"
PLANTED = {
    "a kind": ("policy", "."), "an artifact": (f"copy/{'f' * 20}", KEY),
    "a leftover": (f"copy/{'f' * 20}.partial-01234567", "."), "a file of a leftover": (f"{LEFT}/deep", "."),
    "cells": (f".{CELLS}/x-1", "."), "all cells": (f".{CELLS}", "."),
    "the work of a leftover": (f"{LEFT}/{WORK}", "."), "the cells of a leftover": (f"{LEFT}/{WORK}/{CELLS}", KEY),
}  # fmt: skip
"""A link in the store, and where outside it leads."""


@pytest.mark.parametrize("case", PLANTED)
def test_clean_follows_no_link_out_of_the_store(case: str, store: Store, outside: Path, tmp_path: Path) -> None:
    place, target = PLANTED[case]
    (store.root / place).parent.mkdir(parents=True, exist_ok=True)
    (store.root / place).symlink_to(outside / target)
    before = contents(outside)
    assert call("clean", *folders(tmp_path), "--yes") == 0
    assert contents(outside) == before
    assert not store.path(UNUSED).exists() and store.has(USED), "the rest of its work is done"


def test_records_and_links_of_runs_lead_nowhere(store: Store, outside: Path, tmp_path: Path) -> None:
    """A record names files, cells and inputs beyond its folder, and a run has a link to what is no artifact."""
    file = store.path(USED) / RECORD
    record = json.loads(file.read_text())
    (tmp_path / "runs" / "mine" / LINKS / "it9").symlink_to(outside)
    (store.root / ".cells" / f"copy-{KEY}").mkdir(parents=True)
    before = contents(outside)
    for key in ("..", "../outside", "policy/../../outside", "/etc", ""):
        record |= {"cells": key, "key": key, "name": key, "kind": key, "inputs": [{"kind": key, "key": key}]}
        record["files"][f"{key}/precious.txt"] = {"bytes": 1, "sha256": "0"}
        file.write_text(json.dumps(record))
        assert call("verify", *folders(tmp_path)) == 3
        assert call("clean", *folders(tmp_path), "--yes") == 0
        assert contents(outside) == before and store.root.is_dir()


def test_an_attempt_goes_on_in_no_folder_behind_a_link(store: Store, outside: Path) -> None:
    """What is planted for it would be written where the link leads."""
    final = store.path(node := Node("x", Steps()))
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
