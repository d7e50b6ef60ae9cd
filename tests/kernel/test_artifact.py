"""Artifacts: made once, whole or not at all, with a record that tells what they are."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import pytest
from toy_stages import Copy, Restart, Steps

from src.kernel.artifact import WORK, Node
from src.kernel.disk import write_atomic
from src.kernel.record import RECORD, damage, read_record, versions
from src.kernel.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def chain(label: str = "") -> list[Node]:
    """Return a and b, which c reads, and d, which reads c."""
    a, b = Node("a", Copy(text="a", label=label)), Node("b", Copy(text="b"))
    return [a, b, c := Node("c", Copy(text="c"), (a, b)), Node("d", Copy(text="d"), (c,))]


def state(root: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of every file: the same only where nothing was written."""
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in root.glob("*/*/*") if p.is_file()}


def test_the_same_inputs_are_kept_and_an_artifact_without_its_record_is_made_again(store: Store) -> None:
    first = [store.make(node) for node in chain()]
    assert [(folder / "text.txt").read_text() for folder in first] == ["a", "b", "abc", "abcd"], "in order"
    before = state(store.root)
    assert [store.make(node) for node in chain(label="another name for people")] == first
    assert state(store.root) == before
    (first[0] / RECORD).unlink()
    assert not store.has(chain()[0]) and damage(store.make(chain()[0])) == []


def test_a_key_says_nothing_of_names_and_moves_with_kind_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is kept here: another makes all that users have made useless, and needs a new version of its stage."""
    key = chain()[3].key
    assert key == "3eac61fb9180bd93c5ed"
    assert dataclasses.replace(chain()[3], name="other", rows=7, work=3, workload="w").key == key
    assert Node("x", Steps()).key != Node("x", Restart()).key
    monkeypatch.setattr(Copy, "version", 2)
    assert chain()[3].key != key


@pytest.mark.parametrize(("stage", "outcome"), [(Steps, "3 found, 2 made"), (Restart, "0 found, 5 made")])
def test_a_crash_leaves_no_artifact_and_the_next_try_finds_what_it_may_find(
    stage: type[Steps], outcome: str, store: Store
) -> None:
    node = Node("x", stage(fails_at=3))
    with pytest.raises(RuntimeError, match="before step 3"):
        store.make(node)
    assert not store.has(node) and not store.path(node).exists()
    assert store.begun(node) == bool(store.leftovers()) == (stage is Steps)
    final = store.make(Node("x", stage()))
    assert (final / "done.txt").read_text() == outcome
    assert read_record(final)["resumed"] == (stage is Steps)
    assert not (final / WORK).exists() and store.leftovers() == []


@pytest.mark.parametrize("stage", [Steps, Restart])
def test_a_crash_between_the_record_and_the_rename_is_no_artifact(
    stage: type[Steps], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large checkpoint is on its way to the disk for seconds at this point. Its work is not done again."""

    def pulled(*_: object) -> None:
        raise OSError("plug pulled")

    node = Node("x", stage())
    with monkeypatch.context() as patch, pytest.raises(OSError, match="plug pulled"):
        patch.setattr(os, "rename", pulled)
        store.make(node)
    assert (store.has(node), store.artifacts(), len(store.leftovers())) == (False, [], 1)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "__call__", pulled)
        final = store.make(node)
    assert not (final / WORK).exists() and damage(final) == []
    assert (store.artifacts(), store.leftovers()) == ([final], [])


def test_the_record_names_every_file_and_the_inputs(store: Store) -> None:
    copy = Copy(text="x", label="not in the record")
    node = Node("it1/copy", copy, (chain()[0],), work=12, workload="count tiny cpu")
    read, copied = store.make(chain()[0]), store.make(node)
    record = read_record(copied)
    assert record["files"] == {
        "deep/empty.bin": {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()},
        "text.txt": {"bytes": 2, "sha256": hashlib.sha256(b"ax").hexdigest()},
    }
    expected = {"name": "it1/copy", "kind": "copy", "key": copied.name, "version": 1, "resumed": False, "work": 12}
    expected |= {"config": {"_target_": "Copy", "text": "x"}, "inputs": [{"kind": "copy", "key": read.name}]}
    assert expected.items() <= record.items()
    assert record["versions"] == versions() and {"python", "torch", "transformers"} <= record["versions"].keys()
    assert len(record["commit"].removesuffix("+dirty")) == 40 or record["commit"] == "unknown"


def test_a_write_that_fails_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(handle: int) -> None:
        raise OSError("no space left")

    write_atomic(path := tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
