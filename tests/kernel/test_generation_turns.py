"""Turns at a folder of answers whose owner hangs: another takes over, and what the first adds later harms nobody."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

import pytest
from slow_engine import LIMIT_S, made_once, wait_until
from tiny_generation import EVERY, QUESTIONS, Small, write_prompts
from turn_taker import COUNT, GOES_ON, fill, holding, started, stopped

from src import attempts
from src.artifact import WORK
from src.attempts import locked
from src.cells import CELLS, Cells
from src.generation.turns import DOING, alone, beside_others
from src.store import LOCK

LEASE_S = 1.5
Capture = pytest.CaptureFixture[str]
Turn = Callable[[Path], AbstractContextManager[None]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "BEAT_S", 0.1)
    monkeypatch.setattr(attempts, "LEASE_S", LEASE_S)


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("share", ["", "1of2"])
@pytest.mark.full
def test_an_owner_that_wakes_up_after_another_took_over_harms_nobody(
    share: str, ends: bool, tmp_path: Path, capsys: Capture
) -> None:
    """It ends; and where it goes on, each answer that is there twice is read once."""
    first = started("fill", tmp_path, share, "a", 0.2, first="" if ends else GOES_ON)
    wait_until(lambda: len(Cells(tmp_path).values) >= 3)
    with stopped(first), ThreadPoolExecutor(1) as threads:
        second = threads.submit(fill, str(tmp_path), share, "b", "0.2")
        wait_until((tmp_path / "begun-b").exists)
        wait_until(lambda: len(Cells(tmp_path).values) >= 6)
        stopped_at = len(Cells(tmp_path).values)
        first.send_signal(signal.SIGCONT)
        second.result(LIMIT_S)
    told = first.communicate(timeout=LIMIT_S)[1]
    said = capsys.readouterr().err
    assert f"process {first.pid} on" in said and f"is {DOING}; waiting" in said and "taking over" in said
    read = Cells(tmp_path)
    assert read.values == {str(k): f"answer {k}" for k in range(COUNT)}
    assert all(value == read.values[key] for key, value, _ in read.again)
    assert ("generate: a later attempt has taken over; this one ends" in told) == ends
    assert first.returncode == (3 if ends else 0), told
    assert len(read.again) <= 1 if ends else len(read.again) >= COUNT - stopped_at
    assert not list(tmp_path.glob(".beat*"))


def test_answers_that_two_owners_have_added_are_the_rows_of_one(llama: Path, tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts", QUESTIONS)
    small = Small(tmp_path, llama)
    rows = small.run("made")
    (file,) = (cells := tmp_path / "out" / WORK / CELLS).glob("*.jsonl")
    shutil.copy(file, cells / f"{'0' * 32}.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    (cells / f"{'f' * 32}.jsonl").write_text("".join(lines[::2]) + lines[0][:20])  # cut off in the midst of one
    assert small.run("made") == rows and len(made_once(tmp_path / "made")) == EVERY


@pytest.mark.full
@pytest.mark.parametrize("turn", [alone, partial(beside_others, share="1of2")])
@pytest.mark.parametrize("name", [LOCK, f"{LOCK}-1of2"])
def test_a_lock_that_nobody_gives_back_is_taken_over(turn: Turn, name: str, tmp_path: Path, capsys: Capture) -> None:
    """As some file systems keep those of machines that are gone."""
    with locked(tmp_path / name, ""):
        begun = time.monotonic()
        with turn(tmp_path):
            assert LEASE_S <= time.monotonic() - begun < 3 * LEASE_S
    assert capsys.readouterr().err.splitlines() == [
        f"generate: another process is {DOING}; waiting",
        "generate: no sign of life of another process; taking over",
    ]


@pytest.mark.full
def test_one_wait_is_enough_for_all_shares_that_hang(tmp_path: Path) -> None:
    with ExitStack() as hang:
        for share in range(4):
            hang.enter_context(holding(tmp_path / f"{LOCK}-{share + 1}of4"))
        begun = time.monotonic()
        with alone(tmp_path):
            assert LEASE_S <= time.monotonic() - begun < 3 * LEASE_S


@pytest.mark.full
def test_other_shares_begin_while_one_waits_for_its_old_self(tmp_path: Path, capsys: Capture) -> None:
    with holding(tmp_path / f"{LOCK}-1of2") as old, ThreadPoolExecutor(1) as threads:

        def again() -> None:
            with beside_others(tmp_path, "1of2"):
                pass

        waits = threads.submit(again)
        wait_until(lambda: f"process {old.pid} on" in capsys.readouterr().err)
        with beside_others(tmp_path, "2of2"):
            assert not waits.done()
        waits.result(LIMIT_S)


def test_the_beat_is_none_of_the_locks(tmp_path: Path) -> None:
    """Or whoever asks for all locks would hold it for one."""
    with beside_others(tmp_path, "1of2"):
        assert sorted(path.name for path in tmp_path.glob(".*")) == [".beat-1of2", LOCK, f"{LOCK}-1of2"]
    with alone(tmp_path):
        assert sorted(path.name for path in tmp_path.glob(f"{LOCK}*")) == [LOCK, f"{LOCK}-1of2"]
