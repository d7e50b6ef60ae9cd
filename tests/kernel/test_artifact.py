"""Artifacts: made once, whole or not at all, with a record that tells what they are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_stages import Copy, Restart, Rows, Slow, Steps

from src.artifact import WORK, Node, Stage
from src.attempts import attempts
from src.config import UserError
from src.disk import write_atomic
from src.provenance import RECORD, damage, read_record, versions
from src.store import Store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def process(script: str, *words: str, **pipes: Any) -> subprocess.Popen[str]:
    """A Python process of its own that finds `src` and the modules of the tests."""
    code = f"import sys; sys.path[:0] = ['tests/kernel', 'tests/lib', 'tests']; {script}"
    return subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT, text=True, **pipes)


def chain(first: str = "a", second: str = "b", third: str = "c", label: str = "") -> list[Node]:
    """A and B are read by C, C by D; E stands alone."""
    a, b = Node("a", Copy(text=first, label=label)), Node("b", Copy(text=second))
    c = Node("c", Copy(text=third), (a, b))
    return [a, b, c, Node("d", Copy(text="d"), (c,)), Node("e", Copy(text="e"))]


def make_all(store: Store, nodes: list[Node]) -> list[Path]:
    return [store.make(node) for node in nodes]


def state(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file: the same only where nothing was written."""
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()}


def test_a_stage_reads_its_inputs_in_order(store: Store) -> None:
    folders = make_all(store, chain())
    assert [(folder / "text.txt").read_text() for folder in folders] == ["a", "b", "abc", "abcd", "e"]


def test_the_same_inputs_are_kept(store: Store) -> None:
    first = make_all(store, chain())
    before = state(store.root)
    assert make_all(store, chain(label="another name for people")) == first
    assert {k: v for k, v in state(store.root).items() if ".locks" not in k} == {
        k: v for k, v in before.items() if ".locks" not in k
    }


@pytest.mark.parametrize(
    ("changes", "moved"),
    [({}, ""), ({"first": "A"}, "acd"), ({"second": "B"}, "bcd"), ({"third": "C"}, "cd"), ({"label": "x"}, "")],
)
def test_a_changed_config_moves_its_artifact_and_all_after_it(changes: dict[str, str], moved: str) -> None:
    pairs = zip(chain(), chain(**changes), strict=True)
    assert "".join(old.name for old, new in pairs if old.key != new.key) == moved


def test_swapped_inputs_another_version_and_another_kind_are_other_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, *_ = chain()
    one, two = Node("c", Copy(text="c"), (a, b)), Node("c", Copy(text="c"), (b, a))
    assert one.key != two.key
    assert Node("x", Steps()).key != Node("x", Restart()).key
    monkeypatch.setattr(Copy, "version", 2)
    assert dataclasses.replace(one).key != one.key
    assert Node("c", Copy(text="c"), (a, b)).key != one.key


def test_a_key_is_the_same_in_every_process_and_says_nothing_of_names() -> None:
    key = chain()[3].key
    with process("from test_artifact import chain; print(chain()[3].key)", stdout=subprocess.PIPE) as other:
        assert other.communicate(timeout=60)[0].strip() == key
    assert dataclasses.replace(chain()[3], name="other", rows=7, work=3, workload="w").key == key
    assert len(key) == 20 and set(key) <= set("0123456789abcdef")


# Crashes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "outcome"), [(Steps, "3 found, 2 made"), (Restart, "0 found, 5 made")], ids=["resumable", "not resumable"]
)
def test_a_crash_leaves_no_artifact_and_the_next_try_finds_what_it_may_find(
    stage: Callable[..., Stage], outcome: str, store: Store
) -> None:
    node = Node("x", stage(fails_at=3))
    with pytest.raises(RuntimeError, match="before step 3"):
        store.make(node)
    assert not store.has(node)
    assert not store.path(node).exists()
    assert store.leftovers() == attempts(store.path(node)) and len(store.leftovers()) == (stage is Steps)
    final = store.make(Node("x", stage()))
    assert (final / "done.txt").read_text() == outcome
    assert read_record(final)["resumed"] == (stage is Steps)
    assert not (final / WORK).exists()
    assert store.leftovers() == []


@pytest.mark.parametrize("stage", [Steps, Restart], ids=["resumable", "not resumable"])
def test_a_crash_between_the_record_and_the_rename_is_no_artifact(
    stage: Callable[..., Stage], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large checkpoint is on its way to the disk for seconds at this point. What follows is whole all the same."""
    node = Node("x", stage())

    def pulled(*_: object) -> None:
        raise OSError("plug pulled")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="plug pulled"):
        patch.setattr(os, "rename", pulled)
        store.make(node)
    assert not store.has(node)
    assert (list(store.artifacts()), len(store.leftovers())) == ([], 1)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "__call__", pulled)  # its work is not done again
        final = store.make(node)
    assert not (final / WORK).exists()
    assert damage(final) == []
    assert (list(store.artifacts()), store.leftovers()) == ([final], [])


def test_a_folder_that_lost_its_record_is_made_again(store: Store) -> None:
    (store.make(chain()[0]) / RECORD).unlink()
    assert not store.has(chain()[0])
    assert damage(store.make(chain()[0])) == []


# The record --------------------------------------------------------------------------------------------------------


def test_the_record_names_every_file_the_inputs_and_the_rows(store: Store) -> None:
    rows = Node("it1/rows", Rows(count=3), rows=4, work=12, workload="count tiny cpu")
    node = Node("it1/copy", Copy(text="x", label="not in the record"), (chain()[0],))
    folders = [store.make(chain()[0]), store.make(rows), store.make(node)]
    record = read_record(folders[2])
    assert record["files"] == {
        "deep/empty.bin": {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()},
        "text.txt": {"bytes": 2, "sha256": hashlib.sha256(b"ax").hexdigest()},
    }
    assert record["inputs"] == [{"kind": "copy", "key": folders[0].name}]
    assert record["config"] == {"_target_": "toy_stages.Copy", "text": "x"}
    assert (record["kind"], record["key"]) == ("copy", folders[2].name)
    assert (record["name"], record["version"], record["rows"], record["resumed"]) == ("it1/copy", 1, None, False)
    assert record["versions"] == versions()
    assert {"python", "torch", "transformers"} <= record["versions"].keys()
    assert len(record["commit"].removesuffix("+dirty")) == 40 or record["commit"] == "unknown"
    counted = read_record(folders[1])
    assert (counted["rows"], counted["work"], counted["workload"]) == (3, 12, "count tiny cpu")


def test_every_chain_of_inputs_ends_in_artifacts_without_any(store: Store) -> None:
    *_, last = make_all(store, chain()[:4])
    seen, todo = [], [last]
    while todo:
        record = read_record(todo.pop())
        seen.append(record["name"])
        todo += [store.root / i["kind"] / i["key"] for i in record["inputs"]]
    assert sorted(seen) == ["a", "b", "c", "d"]


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "whole": (lambda f: None, []),
    "missing": (lambda f: (f / "text.txt").unlink(), ["text.txt: missing"]),
    "one bit": (lambda f: (f / "text.txt").write_bytes(b"`"), ["text.txt: damaged"]),  # a is 0x61, ` is 0x60
    "truncated": (lambda f: os.truncate(f / "text.txt", 0), ["text.txt: damaged"]),
    "grown": (lambda f: (f / "deep" / "empty.bin").write_bytes(b"x"), ["deep/empty.bin: damaged"]),
    "extra": (lambda f: (f / "deep" / "more").touch(), ["deep/more: not in the record"]),
    "two at once": (
        lambda f: (f / "text.txt").rename(f / "moved.txt"),
        ["text.txt: missing", "moved.txt: not in the record"],
    ),
    "no record": (lambda f: (f / RECORD).unlink(), [f"{RECORD}: not a readable record"]),
    "half a record": (lambda f: os.truncate(f / RECORD, 100), [f"{RECORD}: not a readable record"]),
    "a record of noise": (lambda f: (f / RECORD).write_bytes(b"\xff\x00"), [f"{RECORD}: not a readable record"]),
    "an empty record": (lambda f: (f / RECORD).write_text("{}"), [f"{RECORD}: not a readable record"]),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_names_the_file_and_what_is_wrong(case: str, store: Store) -> None:
    harm, expected = DAMAGE[case]
    folder = store.make(chain()[0])
    harm(folder)
    assert [line.split(" (")[0] for line in damage(folder)] == [f"{folder}/{line}" for line in expected]


def test_an_unreadable_record_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="delete the folder"):
        read_record(tmp_path)


# More than one process ---------------------------------------------------------------------------------------------


def start(store: Store, log: Path, seconds: float) -> subprocess.Popen[str]:
    script = "import toy_stages; toy_stages.make_slowly(*sys.argv[1:])"
    return process(script, str(store.root), str(log), str(seconds), stderr=subprocess.PIPE)


def wait_for(log: Path, owner: subprocess.Popen[str]) -> None:
    """Until the owner has begun the stage."""
    deadline = time.monotonic() + 60
    while not log.exists() or not log.read_text():
        assert owner.poll() is None and time.monotonic() < deadline, "it never began"
        time.sleep(0.02)


@pytest.mark.full
def test_three_processes_that_want_one_artifact_make_it_once(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(store, log, seconds=0.7) for _ in range(3)]
    errors = [each.communicate(timeout=60)[1] for each in processes]
    assert [each.returncode for each in processes] == [0, 0, 0], errors
    made = log.read_text().split()
    assert made[1::2] == ["begins", "ends"] and made[0] == made[2]
    waiting = re.compile(r"slow: (process \d+ on|another process).* is making it; waiting")
    assert sum(waiting.search(error) is not None for error in errors) == 2
    assert [damage(folder) for folder in store.artifacts()] == [[]]


@pytest.mark.full
def test_a_killed_owner_blocks_nobody_and_leaves_nothing_half(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with start(store, log, seconds=60) as owner:
        wait_for(log, owner)
        waiting = start(store, log, seconds=0)
        assert waiting.stderr is not None
        assert "waiting" in waiting.stderr.readline()
        assert list(store.artifacts()) == []
        owner.send_signal(signal.SIGKILL)
        owner.communicate(timeout=30)
    waiting.communicate(timeout=30)
    assert waiting.returncode == 0
    (folder,) = store.artifacts()
    assert sorted(p.name for p in folder.iterdir()) == [RECORD, "whole.txt"]
    assert len(log.read_text().splitlines()) == 3  # one begun and killed, one begun and ended
    assert store.make(Node("slow", Slow(log="", seconds=0))) == folder


WRITER = """
from pathlib import Path; from src.disk import write_atomic
for turn in range(10**6): write_atomic(Path(sys.argv[1]), b"ab"[turn % 2 : turn % 2 + 1] * 300_000)
"""


def test_write_atomic_never_shows_a_mixture_not_even_to_the_killed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"b" * 300_000)
    with process(WRITER, str(path)) as writer:
        seen = set()
        for _ in range(200):
            seen.add(path.read_bytes())
            time.sleep(0.005)
        writer.kill()
    assert seen | {path.read_bytes()} == {b"a" * 300_000, b"b" * 300_000}


def test_a_write_that_fails_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full_disk(handle: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


def test_the_record_is_json_a_person_can_read(store: Store) -> None:
    text = (store.make(chain()[0]) / RECORD).read_text()
    assert text.endswith("}\n") and text.count("\n") > 10
    assert json.loads(text)["name"] == "a"
