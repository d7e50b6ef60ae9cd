"""The whole run, hit at random moments and started again until it is done: the same bytes, and nothing made twice.

Run: python -m pytest -q tests/test_crashes.py; the long version, some sixty kills: make faults
"""

from __future__ import annotations

import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from crashes import FINAL, TIMEOUT_S, Command, Done, Hits, hit_until_done, writes_of
from tiny_run import contents, folders, tiny, typed

from src.artifact import Node, Store
from src.provenance import damage

pytestmark = pytest.mark.slow
LONG = 64


class Whole(NamedTuple):
    """An uninterrupted run: its words without store and runs, what it plans and writes, and its artifacts."""

    words: list[str]
    nodes: list[Node]
    writes: dict[str, int]
    contents: dict[str, dict[str, str]]

    def hit(self, place: Path, seed: int, most: int, ahead: int, number: int, **env: str) -> Hits:
        """Ends with the same artifacts, each put into place once."""
        command = Command(self.words, place, place / "log", "iter=2")
        place.mkdir()
        hits = hit_until_done(command, self.nodes, self.writes, random.Random(seed), most, ahead, number, **env)
        assert contents(Store(place / "store")) == self.contents
        assert set(hits.placed.values()) == {1}
        assert not Store(place / "store").leftovers()
        return hits


@pytest.fixture(scope="module")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    place = tmp_path_factory.mktemp("whole")
    words = [word for word in tiny(llama, place) if not word.startswith(("store=", "runs="))]
    nodes = typed(*words, *folders(place), "iter=2").nodes()
    done = Command(words, place, place / "log", "iter=2").run()
    assert done.code == 0, done.err
    return Whole(words, nodes, writes_of(done, nodes), contents(Store(place / "store")))


@pytest.mark.parametrize(("number", "most"), [(signal.SIGKILL, 5), (signal.SIGTERM, 2)])
def test_hit_at_a_few_moments_it_ends_with_the_same_bytes(number: int, most: int, whole: Whole, tmp_path: Path) -> None:
    hits = whole.hit(tmp_path / "run", 0, most, len(whole.nodes), number)
    assert hits.making.total() == most


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_hit_at_many_moments_of_all_stages_it_ends_with_the_same_bytes(
    number: int, whole: Whole, tmp_path: Path
) -> None:
    making: Counter[str] = Counter()
    for seed in range(1, 20):
        making += whole.hit(tmp_path / str(seed), seed, LONG, 4, number).making
        if making.total() >= LONG:
            break
    kinds = {node.stage.kind for node in whole.nodes}
    hit = {node.stage.kind for node in whole.nodes if node.name in making}
    print(f"{making.total()} hits in {seed} runs:", ", ".join(f"{name} {n}" for name, n in making.items()))
    assert making.total() >= LONG and hit == kinds


@pytest.mark.faults
def test_a_clock_that_jumps_by_weeks_changes_nothing(whole: Whole, tmp_path: Path) -> None:
    assert whole.hit(tmp_path / "run", 0, 10, 4, signal.SIGKILL, CRASH_CLOCK="2e6").making.total() == 10


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
        assert all(damage(path) == [] for path in Store(place / "store").artifacts())
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
    assert (
        done.code == 2 and done.err == f"error: store: cannot write below {place / 'store'}; is it a folder of yours?\n"
    )


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
    assert contents(Store(place / "store")) == whole.contents


def test_two_processes_race_and_make_everything_once(whole: Whole, tmp_path: Path) -> None:
    race(whole, 2, tmp_path / "two")


@pytest.mark.faults
def test_eight_processes_race_and_make_everything_once(whole: Whole, tmp_path: Path) -> None:
    race(whole, 8, tmp_path / "eight")
