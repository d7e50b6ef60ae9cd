"""One owner of a lock at a time; a lost one is taken over from, and harms nobody. Time is what the test says it is.

In `make faults` the owners are processes that are stopped and wake up again.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from places import PYTHONPATH, ROOT
from toy_stages import Walk

from src.generation.stage import hold_all, hold_share
from src.kernel import disk
from src.kernel import store as kernel_store
from src.kernel.artifact import WORK, Node
from src.kernel.cells import Cells
from src.kernel.config import Fault
from src.kernel.disk import LEASE_S, is_held, turn
from src.kernel.record import damage
from src.kernel.store import LOCK, Store

NODE = Node("walk", Walk(name=""))
Capture = pytest.CaptureFixture[str]


class Clock:
    """Goes on by `step` seconds at every look; `look` is called then."""

    def __init__(self, step: float, look: Callable[[], object] = lambda: None) -> None:
        self.now, self.step, self.look = 0.0, step, look

    def monotonic(self) -> float:
        self.look()
        self.now += self.step
        return self.now


def set_clock(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Clock:
    """Time leases by the clock; who waits looks again at once."""
    monkeypatch.setattr(disk, "time", clock)
    monkeypatch.setattr(disk, "BEAT_S", 0.01)
    return clock


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def walked(store: Store) -> str:
    return (store.path(NODE) / "walked.txt").read_text()


# Locks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [LOCK, f"{LOCK}-1of2"])
def test_a_lock_that_nobody_gives_back_is_taken_over(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """As some file systems keep those of machines that are gone."""
    set_clock(monkeypatch, Clock(LEASE_S / 5))
    takers = [hold_all, partial(hold_share, share="1of2"), lambda folder: turn(folder / name, "generate")]
    for number, taken in enumerate(takers):
        folder = tmp_path / str(number)
        with FileLock(folder / name), taken(folder):
            first, second = capsys.readouterr().err.splitlines()
        assert first.startswith("generate: another process is ") and first.endswith("; waiting")
        assert second == "generate: no sign of life of another process; taking over"


def test_an_owner_that_beats_keeps_its_lock_however_the_file_systems_clock_jumps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """It beats nine times, each less than a lease after the one before, and then no more."""
    file, beats = tmp_path / "a.lock", iter([5.0, 1e9, 3.0, 1.0, 1e9, 2.0, 7.0, 2.0, 4.0])

    def beat() -> None:
        if (at := next(beats, None)) is not None:
            os.utime(tmp_path / "a.beat", (at, at))

    clock = set_clock(monkeypatch, Clock(LEASE_S / 2, beat))
    with FileLock(file):
        (tmp_path / "a.beat").write_text("process 1 on x\nits number\n")
        with turn(file, "it"):
            pass
    assert clock.now >= 10 * LEASE_S / 2 + LEASE_S
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
    assert not beat.exists() and not is_held(file)
    with pytest.raises(ValueError, match="inside"), turn(file, "it", waits=False):
        raise ValueError("inside")
    with turn(file, "it", waits=False) as again:
        assert again


def test_who_has_no_folder_of_its_own_ends_when_it_hears_anothers_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "BEAT_S", 0.01)
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    with turn(tmp_path / "a.lock", "it"):
        (tmp_path / "a.beat").write_text("another\nof another number\n")
        assert ended.wait(60)
    assert (tmp_path / "a.beat").exists(), "it is the other's"


def test_the_beat_is_none_of_the_locks(tmp_path: Path) -> None:
    """Or whoever asks for all locks would hold it for one."""
    with hold_share(tmp_path, "1of2"):
        assert sorted(path.name for path in tmp_path.glob(".*")) == [".beat-1of2", LOCK, f"{LOCK}-1of2"]
    with hold_all(tmp_path):
        assert sorted(path.name for path in tmp_path.glob(f"{LOCK}*")) == [LOCK, f"{LOCK}-1of2"]


# Folders of attempts -----------------------------------------------------------------------------------------------


def meanwhile(monkeypatch: pytest.MonkeyPatch, store: Store, where: str, real: Callable[..., Any]) -> None:
    """Another makes the artifact whole when `where` is called first."""

    def called(*words: Any) -> Any:
        result = real(*words)
        with monkeypatch.context() as patch:
            patch.setattr(where, real)
            store._make(Node("walk", Walk(name="b")))
        monkeypatch.setattr(where, real)
        return result

    monkeypatch.setattr(where, called)


def test_an_owner_that_was_taken_over_harms_nobody_when_it_lives_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later attempt goes on with what the first has made, and that ends as after a failure of the machine."""
    monkeypatch.setattr("toy_stages.time", SimpleNamespace(sleep=lambda _: None))
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


# Processes that are stopped ----------------------------------------------------------------------------------------


def taken_over(call: str, place: Path, count: Callable[[], int]) -> tuple[str, int]:
    """The first is stopped in its work, and wakes in that of the second; what it says, and its exit code."""

    def start(*words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", f"import sys, toy_stages; toy_stages.{call}(*sys.argv[1:])"]
        environment = os.environ | {"PYTHONPATH": PYTHONPATH}
        return subprocess.Popen([*command, *map(str, words)], env=environment, cwd=ROOT, text=True, stderr=-1)

    def wait_for(least: int) -> None:
        until = time.monotonic() + 120
        while count() < least:
            assert time.monotonic() < until, "it never happened"
            time.sleep(0.02)

    first = start(place, "a", 0.3, 30)
    wait_for(3)
    first.send_signal(signal.SIGSTOP)
    second = start(place, "b", 0.3, 1)
    wait_for(6)
    first.send_signal(signal.SIGCONT)
    told, said = first.communicate(timeout=120)[1], second.communicate(timeout=120)[1]
    assert f"no sign of life of process {first.pid} on" in said and second.returncode == 0, said
    assert "a later attempt has taken over; this one ends" in told
    return told, first.returncode


@pytest.mark.faults
def test_a_stopped_maker_of_an_artifact_is_taken_over_and_harms_nobody_when_it_wakes(store: Store) -> None:
    def steps() -> int:
        return len(list(work.glob("*.txt"))) if (work := store.work(NODE)) else 0

    assert taken_over("walk", store.root, steps)[1] in (1, 3), "by a write that fails, or by the beat"
    assert re.fullmatch("a{3,}b{6,}", walked(store))
    assert store.leftovers() == [] and damage(store.path(NODE)) == []


@pytest.mark.faults
def test_a_stopped_maker_of_answers_is_taken_over_and_adds_at_most_one_twice(tmp_path: Path) -> None:
    assert taken_over("fill", tmp_path, lambda: len(Cells(tmp_path).values))[1] == 3
    read = Cells(tmp_path)
    assert read.values == {str(number): f"answer {number}" for number in range(12)}
    lines = [line for file in tmp_path.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(lines) <= 13, "it adds what it was in the midst of, and no more"
    assert not list(tmp_path.glob(".beat*"))
