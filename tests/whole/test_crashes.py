"""The whole run, hit at random moments and started again until it is done: the same bytes, and nothing made twice.

Run: python -m pytest -q tests/whole/test_crashes.py; the long version, some sixty kills: make faults
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from crashes import (
    FINAL,
    TIMEOUT_S,
    Command,
    Done,
    Hits,
    assert_whole,
    hit_until_done,
    next_moment,
    writes_of,
)
from tiny_run import contents, folders, metric_lines, tiny, typed

from src.artifact import Node
from src.faults import SAID
from src.store import Store

pytestmark = [pytest.mark.full, pytest.mark.timeout(7200)]
LONG = 64
LEASE_S = "3"
WEEKS = "2e6"
"""Seconds."""


class Whole(NamedTuple):
    """An uninterrupted run: its words without store and runs, what it plans and writes, its artifacts and metrics."""

    words: list[str]
    nodes: list[Node]
    writes: dict[str, int]
    contents: dict[str, dict[str, str]]
    metrics: list[dict[str, float]]

    def hit(self, place: Path, seed: int, most: int, ahead: int, number: int, **env: str) -> Hits:
        """Ends with the same artifacts, each put into place once, and the same metrics."""
        command = Command(self.words, place, place / "log", "iter=2")
        place.mkdir()
        hits = hit_until_done(command, self.nodes, self.writes, random.Random(seed), most, ahead, number, **env)
        assert contents(Store(place / "store")) == self.contents
        assert metrics(place) == self.metrics
        assert len(hits.made) == len(self.nodes) and {len(made) for made in hits.made.values()} == {1}
        assert not Store(place / "store").leftovers()
        return hits


def metrics(place: Path) -> list[dict[str, float]]:
    """Of the one run there."""
    (folder,) = (place / "runs").iterdir()
    return metric_lines(folder)


@pytest.fixture(scope="module")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    place = tmp_path_factory.mktemp("whole")
    words = [word for word in tiny(llama, place) if not word.startswith(("store=", "runs="))]
    nodes = typed(*words, *folders(place), "iter=2").nodes()
    done = Command(words, place, place / "log", "iter=2").run()
    assert done.code == 0, done.err
    return Whole(words, nodes, writes_of(done, nodes), contents(Store(place / "store")), metrics(place))


@pytest.mark.parametrize(("number", "most"), [(signal.SIGKILL, 5), (signal.SIGTERM, 2)])
def test_hit_at_a_few_moments_it_ends_with_the_same_bytes(number: int, most: int, whole: Whole, tmp_path: Path) -> None:
    hits = whole.hit(tmp_path / "run", 0, most, 4, number)
    assert hits.making.total() == most


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_hit_at_many_moments_of_all_stages_it_ends_with_the_same_bytes(
    number: int, whole: Whole, tmp_path: Path
) -> None:
    making: Counter[str] = Counter()
    seed = 0
    while making.total() < LONG:
        seed += 1
        making += whole.hit(tmp_path / str(seed), seed, LONG, 4, number).making
    kinds = {node.stage.kind for node in whole.nodes}
    hit = {node.stage.kind for node in whole.nodes if node.name in making}
    print(f"{making.total()} hits in {seed} runs:", ", ".join(f"{name} {n}" for name, n in making.items()))
    assert hit == kinds


@pytest.mark.faults
def test_a_clock_that_jumps_by_weeks_changes_nothing(whole: Whole, tmp_path: Path) -> None:
    assert whole.hit(tmp_path / "run", 0, 10, 4, signal.SIGKILL, CRASH_CLOCK=WEEKS).making.total() == 10


def test_who_waits_while_clocks_jump_takes_no_turn_of_one_that_lives(whole: Whole, tmp_path: Path) -> None:
    """The times of beats jump too."""
    commands = [Command(whole.words, tmp_path, tmp_path / f"log{n}", "iter=2", f"name=run{n}") for n in range(2)]
    started = [command.start(CRASH_CLOCK=WEEKS, CRASH_LEASE="10") for command in commands]
    off = 0.0
    while any(process.poll() is None for process in started):
        for beat in tmp_path.glob("store/.locks/*.beat"):
            with suppress(FileNotFoundError):
                off = max(off, abs(beat.stat().st_mtime - time.time()))
        time.sleep(0.02)
    said = [process.communicate()[1] for process in started]
    assert off > 1000, "no beat was seen to jump"
    assert [process.returncode for process in started] == [0, 0], said
    assert "; waiting" in "".join(said) and "taking over" not in "".join(said)
    assert_whole(Store(tmp_path / "store"))
    assert contents(Store(tmp_path / "store")) == whole.contents


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a size, or gives the one that is there another size."""
    place = tmp_path / "small"
    place.mkdir()

    def mount(options: str) -> Path:
        again = ["-o", f"remount,{options}"] if place.is_mount() else ["-t", "tmpfs", "-o", options]
        done = subprocess.run(["mount", *again, "none", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounts no tmpfs: {done.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", "--lazy", place], capture_output=True)


def told(done: Done) -> str:
    """The one line with which a command ends that the machine fails."""
    assert done.code == 3 and "Traceback" not in done.err, done.err
    (line,) = (line for line in done.err.replace("\r", "\n").splitlines() if "error: " in line)
    return line.partition("error: ")[2]


def fill_up(whole: Whole, mount: Callable[[str], Path], log: Path, sizes: Iterable[int]) -> int:
    """A run on a file system that grows each time it is full; returns how often that was."""
    for failures, kilobytes in enumerate(sizes):
        place = mount(f"size={kilobytes}k")
        done = Command(whole.words, place, log, "iter=2").run()
        assert_whole(Store(place / "store"))
        if done.code == 0:
            assert contents(Store(place / "store")) == whole.contents
            return failures
        assert "room" in told(done)
    raise AssertionError("it is never done")


def test_a_full_disk_is_one_line_and_with_more_room_it_goes_on(
    whole: Whole, small: Callable[[str], Path], tmp_path: Path
) -> None:
    assert fill_up(whole, small, tmp_path / "log", (400, 900, 100_000)) == 2


@pytest.mark.faults
def test_a_disk_that_is_full_again_and_again(whole: Whole, small: Callable[[str], Path], tmp_path: Path) -> None:
    sizes = (round(64 * 1.12**n) for n in range(60))
    assert fill_up(whole, small, tmp_path / "log", sizes) >= 20


def test_a_store_that_is_read_only_is_one_line(whole: Whole, small: Callable[[str], Path], tmp_path: Path) -> None:
    place = small("size=9m")
    (place / "store").mkdir()
    small("ro")
    done = Command(whole.words, place, tmp_path / "log", "iter=2").run()
    assert told(done) == f"store: {place / 'store'}: {SAID[errno.EROFS]}"


def taken_over(whole: Whole, place: Path, seed: int) -> None:
    """A run hangs, another of the same store takes its turn, and the first wakes while that one works or after it."""
    place.mkdir()
    chance = random.Random(seed)
    first, second = (Command(whole.words, place, place / f"log{n}", "iter=2") for n in range(2))
    moment = next_moment(whole.nodes, whole.writes, chance, len(whole.nodes))
    hung = first.start(moment, CRASH_SIGNAL=str(int(signal.SIGSTOP)), CRASH_LEASE=LEASE_S)
    until = time.monotonic() + TIMEOUT_S
    while psutil.Process(hung.pid).status() != psutil.STATUS_STOPPED:
        assert hung.poll() is None and time.monotonic() < until, f"{moment}: never hung, code {hung.returncode}"
        time.sleep(0.1)
    other = second.start(CRASH_LEASE=LEASE_S)
    assert other.stderr and "waiting" in other.stderr.readline() and "taking over" in other.stderr.readline()
    time.sleep(chance.uniform(0, 10))
    os.killpg(hung.pid, signal.SIGCONT)
    for process, code in ((other, 0), (hung, 3)):
        _, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == code and "Traceback" not in err, f"{moment}: {process.returncode}, {err}"
    assert_whole(Store(place / "store"))
    assert contents(Store(place / "store")) == whole.contents
    assert not Store(place / "store").leftovers()


def test_a_hung_owner_loses_its_turn_and_ends_when_it_wakes(whole: Whole, tmp_path: Path) -> None:
    taken_over(whole, tmp_path / "run", 0)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1, 13))
def test_owners_that_hang_at_many_moments(seed: int, whole: Whole, tmp_path: Path) -> None:
    taken_over(whole, tmp_path / "run", seed)


def race(whole: Whole, count: int, place: Path) -> None:
    """So many runs at once, of one store; each artifact is put into place by one of them."""
    commands = [Command(whole.words, place, place / f"log{n}", "iter=2", f"name=run{n}") for n in range(count)]
    place.mkdir()
    started = [command.start() for command in commands]
    for process in started:
        _, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, err
    lines = [line for command in commands for line in command.log.read_text().splitlines()]
    placed = Counter(found[1] for line in lines if (found := FINAL.fullmatch(line)))
    assert set(placed.values()) == {1} and len(placed) == len(whole.nodes)
    assert_whole(Store(place / "store"))
    assert contents(Store(place / "store")) == whole.contents


def test_two_processes_race_and_make_everything_once(whole: Whole, tmp_path: Path) -> None:
    race(whole, 2, tmp_path / "two")


@pytest.mark.faults
def test_eight_processes_race_and_make_everything_once(whole: Whole, tmp_path: Path) -> None:
    race(whole, 8, tmp_path / "eight")
