"""Attempts at one artifact: one at a time, and one that was given up harms nobody."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from toy_stages import Walk
from turn_taker import holding, started

from src import attempts
from src.artifact import WORK, Node
from src.attempts import fenced, locked, turn, turn_if_free
from src.config import Fault
from src.provenance import damage
from src.store import Store

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
NODE = Node("walk", Walk(name="", seconds=0))
NO_LOCKS = "import filelock; filelock.FileLock.acquire = filelock.FileLock.release = lambda *_, **__: None; "


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def walker(
    store: Store, name: str, seconds: float, beat: float = 0.2, lease: float = 30.0, first: str = "", gate: str = ""
) -> subprocess.Popen[str]:
    code = f"import sys; sys.path[:0] = ['tests/lib']; {first}import toy_stages; toy_stages.walk(*sys.argv[1:])"
    words = [str(store.root), name, str(seconds), str(beat), str(lease), gate]
    return subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT, text=True, stderr=subprocess.PIPE)


def wait_until(happened: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def steps(store: Store) -> list[Path]:
    work = store.work(NODE)
    return sorted(work.glob("*.txt")) if work else []


def told(process: subprocess.Popen[str]) -> str:
    """What it says until it ends."""
    return process.communicate(timeout=60)[1]


@contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[None]:
    """A process that neither works nor beats, and holds its lock."""
    process.send_signal(signal.SIGSTOP)
    yield
    process.send_signal(signal.SIGCONT)


def walked(store: Store) -> str:
    return (store.path(NODE) / "walked.txt").read_text()


def test_an_owner_whose_beat_stands_still_is_taken_over_and_harms_nobody_when_it_lives_on(store: Store) -> None:
    first = walker(store, "a", 0.3)
    wait_until(lambda: len(steps(store)) >= 3)
    with stopped(first):
        second = walker(store, "b", 0.3, lease=1.0)
        wait_until(lambda: len(steps(store)) >= 6)
    assert "walk: a later attempt has taken over; this one ends" in told(first)
    assert first.returncode == 1
    said = told(second)
    assert f"no sign of life of process {first.pid} on" in said and second.returncode == 0, said
    made = walked(store)
    assert made.count("a") >= 3 and made.count("b") >= 6 and made == "a" * made.count("a") + "b" * made.count("b")
    assert store.leftovers() == [] and damage(store.path(NODE)) == []


def test_an_owner_that_is_slow_but_lives_keeps_its_turn(store: Store) -> None:
    """Its beat goes on while it is in the midst of a step that takes longer than the lease."""
    gate = store.root.parent / "gate"
    with walker(store, "a", 0.0, beat=0.1, gate=str(gate)) as first:
        wait_until(lambda: len(steps(store)) == 12)
        second = walker(store, "b", 0.0, lease=1.0)
        assert second.stderr is not None
        waiting = second.stderr.readline()
        time.sleep(3.0)
        gate.touch()
        assert told(first) == "" and first.returncode == 0
    assert f"walk: process {first.pid} on" in waiting and "is making it; waiting" in waiting
    assert told(second) == "" and second.returncode == 0
    assert walked(store) == "a" * 12


def test_where_locks_do_not_work_the_later_attempt_wins_whole(store: Store) -> None:
    """As on a file system that keeps no locks between nodes: both believe that it is their turn."""
    first = walker(store, "a", 0.3, first=NO_LOCKS)
    wait_until(lambda: len(steps(store)) >= 3)
    second = walker(store, "b", 0.3, first=NO_LOCKS)
    assert "a later attempt has taken over" in told(first) and first.returncode == 1
    assert told(second) == "" and second.returncode == 0
    assert walked(store).strip("b").strip("a") == "" and walked(store).endswith("b")
    assert store.leftovers() == [] and damage(store.path(NODE)) == []


def test_who_has_lost_its_folder_ends_as_after_a_failure_of_the_machine(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="walk: a later attempt has taken over"), fenced(tmp_path / "gone", "walk"):
        raise ValueError("whatever")


def test_who_comes_last_to_the_name_leaves_what_is_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without working locks another may have finished it between the look and the rename."""
    begin = attempts.begin

    def overtaken(final: Path) -> Path:
        own = begin(final)
        with monkeypatch.context() as patch:
            patch.setattr("src.store.begin", begin)
            store._make(Node("walk", Walk(name="first", seconds=0)), final)
        return own

    monkeypatch.setattr("src.store.begin", overtaken)
    store._make(Node("walk", Walk(name="last", seconds=0)), store.path(NODE))
    assert walked(store) == "first" * 12
    assert store.leftovers() == []


def test_of_several_leftovers_the_newest_is_gone_on_with(store: Store) -> None:
    final = store.path(NODE)
    for age, name in ((30, "old"), (10, "new"), (20, "older")):
        work = final.with_name(f"{NODE.key}.partial-{age:08d}") / WORK
        work.mkdir(parents=True)
        (work / "0.txt").write_text(name)
        os.utime(work.parent, (time.time() - age,) * 2)
    store.make(Node("walk", Walk(name=".", seconds=0)))
    assert walked(store) == "new" + "." * 11
    assert store.leftovers() == []


def test_what_a_killed_process_was_about_to_write_is_no_part_of_the_artifact(store: Store) -> None:
    final = store.path(NODE)
    left = final.with_name(f"{NODE.key}.partial-00000000")
    (left / WORK).mkdir(parents=True)
    (left / WORK / "0.txt").write_text("old")
    half, own = left / ".record.json.0123abcd.tmp", left / "of_the_stage.tmp"
    half.write_text("{")
    own.touch()
    store.make(Node("walk", Walk(name=".", seconds=0)))
    assert walked(store) == "old" + "." * 11
    assert sorted(path.name for path in final.iterdir()) == ["of_the_stage.tmp", "record.json", "walked.txt"]
    assert damage(final) == []


def test_an_attempt_that_moves_into_its_place_meanwhile_is_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    final = store.path(NODE)
    there, gone = (final.with_name(f"{NODE.key}.partial-{number:08d}") for number in range(2))
    there.mkdir(parents=True)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([gone, there]))
    assert attempts.attempts(final) == [there]


def test_the_beat_names_the_job_and_is_gone_afterwards(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    seen = []
    monkeypatch.setattr(
        Walk,
        "__call__",
        lambda self, out: seen.extend(store.root.glob(".locks/*.beat")) or seen.append(seen[0].read_text()),
    )
    store.make(NODE)
    assert seen[1].startswith(f"process {os.getpid()} on ") and "(job 77)" in seen[1]
    assert list(store.root.glob(".locks/*.beat")) == []


def test_all_turns_of_an_owner_that_has_stopped_are_lost_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run waits for its folder, then for an artifact, then for answers: one lease, not three."""
    monkeypatch.setattr(attempts, "BEAT_S", 0.1)
    monkeypatch.setattr(attempts, "LEASE_S", 3.0)
    files = [tmp_path / f"{name}.lock" for name in "abc"]
    with holding(*files):
        begun = time.monotonic()
        with turn(files[0], "a"), turn(files[1], "b"), turn(files[2], "c"):
            assert 3.0 <= time.monotonic() - begun < 9.0


def test_who_was_slower_to_take_over_leaves_the_new_owner_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has seen that the old owner is lost, and before it acts another takes over."""
    monkeypatch.setattr(attempts, "BEAT_S", 0.1)
    monkeypatch.setattr(attempts, "LEASE_S", 1.0)
    file = tmp_path / "a.lock"
    with holding(file):
        slower = attempts.Watch(file)
        with turn(file, "the faster one"):
            slower.drop_lock()
            with turn_if_free(file, "somebody else") as free:
                assert not free


@pytest.mark.faults
def test_of_eight_that_wait_for_a_lost_owner_one_at_a_time_takes_over(tmp_path: Path) -> None:
    """Each keeps its turn for a while and would be seen there by another."""
    for round_ in range(10):
        file = tmp_path / f"{round_}.lock"
        with holding(file):
            waiting = [started("visit", file, "0.2") for _ in range(8)]
            said = [told(process) for process in waiting]
        assert [process.returncode for process in waiting] == [0] * 8, said


def test_a_turn_that_is_free_is_taken_with_a_beat_and_one_that_is_not_is_left(tmp_path: Path) -> None:
    file, beat = tmp_path / "deep" / ".lock", tmp_path / "deep" / ".beat"
    with turn_if_free(file, "it") as first:
        with turn_if_free(file, "it") as second:
            assert (first, second) == (True, False)
        assert beat.read_text().startswith(f"process {os.getpid()} on ")
    assert not beat.exists()
    with locked(file, ""), turn_if_free(file, "it") as third:
        assert not third
    with pytest.raises(ValueError, match="inside"), turn_if_free(file, "it"):
        raise ValueError("inside")
    with turn_if_free(file, "it") as fourth:
        assert fourth


def test_who_waits_says_who_is_doing_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.lock"

    def wait() -> None:
        with turn(file, "runs/x", "carrying out this run"):
            pass

    said: list[str] = []
    with turn(file, "runs/x"):
        waiting = threading.Thread(target=wait)
        waiting.start()
        wait_until(lambda: said.append(capsys.readouterr().err) or "waiting" in "".join(said))
    waiting.join()
    assert re.fullmatch(rf"runs/x: process {os.getpid()} on \S+ is carrying out this run; waiting\n", "".join(said))
