"""One owner of a lock at a time; a lost one is taken over from, and harms nobody. Time is what the test says it is.

Real processes that are stopped and wake up again are in tests/whole/test_slurm_survival.py.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from toy_stages import Walk

from src.kernel import disk
from src.kernel import store as kernel_store
from src.kernel.artifact import WORK, Node
from src.kernel.config import Fault
from src.kernel.disk import is_held, turn
from src.kernel.record import damage
from src.kernel.store import LOCK, Store

NODE = Node("walk", Walk(name=""))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def walked(store: Store) -> str:
    return (store.path(NODE) / "walked.txt").read_text()


# Locks -------------------------------------------------------------------------------------------------------------


def test_who_has_not_beaten_for_five_minutes_is_taken_over_from_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some file systems keep the locks of machines that are gone.

    A look takes 95 seconds here. The owner beats at every third, five times, and the clock of the file system jumps.
    """
    beats = [at if n % 3 == 0 else None for at in (5.0, 1e9, 3.0, 1.0, 1e9) for n in range(3)]
    clock = SimpleNamespace(now=0.0)

    def monotonic() -> float:
        clock.now += 95
        if beats and (at := beats.pop(0)) is not None:
            os.utime(tmp_path / "a.beat", (at, at))
        return clock.now

    monkeypatch.setattr(disk, "time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(disk, "BEAT_S", 0.01)
    (tmp_path / "a.beat").write_text("process 1 on x\nits number\n")
    with FileLock(tmp_path / "a.lock"), turn(tmp_path / "a.lock", "it"):
        assert not beats and clock.now < 15 * 95 + 300 + 3 * 95
    assert capsys.readouterr().err.splitlines() == [
        "it: process 1 on x is making it; waiting",
        "it: no sign of life of process 1 on x; taking over",
    ]


def test_a_lock_that_is_free_is_taken_with_a_beat_and_one_that_is_not_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    file, beat = tmp_path / "deep" / ".lock", tmp_path / "deep" / ".beat"
    assert not is_held(file)
    with turn(file, "it", waits=False) as first, turn(file, "it", waits=False) as second:
        assert (first, second) == (True, False) and is_held(file)
        assert re.fullmatch(rf"process {os.getpid()} on \S+ \(job 77\)\n\S+\n", beat.read_text())
        assert [*file.parent.glob(f"{LOCK}*")] == [file], "or whoever asks for all locks would hold the beat for one"
    with pytest.raises(ValueError, match="inside"), turn(file, "it", waits=False):
        raise ValueError("inside")
    assert not beat.exists() and not is_held(file)


def test_who_hears_anothers_beat_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(disk, "BEAT_S", 0.01)
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    with turn(tmp_path / "a.lock", "it"):
        (tmp_path / "a.beat").write_text("another\nof another number\n")
        assert ended.wait(60)
    assert (tmp_path / "a.beat").exists(), "it is the other's"


# Folders of attempts -----------------------------------------------------------------------------------------------


def meanwhile(monkeypatch: pytest.MonkeyPatch, store: Store, where: str, real: Callable[..., Any]) -> None:
    """Have another make the artifact whole when `where` is called first."""

    def called(*words: Any) -> Any:
        result = real(*words)
        monkeypatch.setattr(where, real)
        store._make(Node("walk", Walk(name="b")))
        return result

    monkeypatch.setattr(where, called)


def test_an_owner_that_was_taken_over_harms_nobody_when_it_lives_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later attempt goes on with what the first has made, and the first ends as after a failure of the machine."""
    monkeypatch.setattr("toy_stages.time", SimpleNamespace(sleep=None))
    meanwhile(monkeypatch, store, "toy_stages.time.sleep", lambda _: None)
    with pytest.raises(Fault, match="walk: a later attempt has taken over"):
        store._make(Node("walk", Walk(name="a")))
    assert walked(store) == "a" + "b" * 11
    assert store.leftovers() == [] and damage(store.path(NODE)) == []


def test_who_comes_last_to_the_name_leaves_what_is_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without working locks another may have finished it between the look and the rename."""
    meanwhile(monkeypatch, store, "src.kernel.store.begin", kernel_store.begin)
    store._make(Node("walk", Walk(name="last")))
    assert walked(store) == "b" * 12 and store.leftovers() == []


def test_what_a_killed_process_was_about_to_write_goes(store: Store) -> None:
    final = store.path(NODE)
    work = final.with_name(f"{NODE.key}.partial-00000000") / WORK
    work.mkdir(parents=True)
    (work / "0.txt").write_text("old")
    (work.parent / ".record.json.0123abcd.tmp").write_text("{")
    store.make(Node("walk", Walk(name=".")))
    assert walked(store) == "old" + "." * 11 and store.leftovers() == []
    assert sorted(path.name for path in final.iterdir()) == ["record.json", "walked.txt"]
