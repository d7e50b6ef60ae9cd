"""The real command, hit at chosen moments and started again until it is done: the same bytes, and nothing made twice.

A moment is a number of writes (tests/lib/crashing/sitecustomize.py) after an artifact was begun, and a delay.
`make test` has one kill; `make faults` two dozen a signal, at all stages, full disks and races.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from places import LIB, ROOT
from tiny_run import World, call, contents, folders, metric_lines, tiny, typed

from src.experiment.graph import nodes_of
from src.kernel.artifact import Node
from src.kernel.record import RECORD, damage
from src.kernel.store import Store

LONG = 24
TIMEOUT_S = 900
"""For a command beside seven others."""
FINAL = re.compile(r"os\.rename (\w+/[0-9a-f]{20})")
"""An artifact is put into place."""


class Command:
    """`python -m src.main` with a store at `place`; what it writes there is noted in a log."""

    def __init__(self, words: list[str], place: Path, log: str = "log", *more: str) -> None:
        self.store, self.log = place / "store", place.with_name(f"{place.name}-{log}")
        self.words = [sys.executable, "-u", "-m", "src.main", *words, *folders(place), *more]

    def start(self, at: str = "", **env: str) -> subprocess.Popen[str]:
        """In a process group of its own, to be hit at the moment."""
        for file in (self.log, self.log.with_name(f"{self.log.name}.crashed")):
            file.unlink(missing_ok=True)
        env |= {"CRASH_AT": at, "CRASH_STORE": str(self.store), "CRASH_LOG": str(self.log)}
        env["PYTHONPATH"] = str(LIB / "crashing")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(self.words, cwd=ROOT, env=os.environ | env, text=True, process_group=0, **pipes)

    def run(self, at: str = "", **env: str) -> tuple[int, str, str]:
        """Its exit code, and what it said."""
        with self.start(at, **env) as process:
            out, err = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, out, err


def test_killed_in_the_midst_of_a_training_it_goes_on_and_ends_with_the_same_bytes(
    finished: World, tmp_path: Path
) -> None:
    words = [*finished.words, *folders(tmp_path), "iter=1"]
    nodes, store = nodes_of(typed(*words)), Store(tmp_path / "store")
    policy = next(node for node in nodes if node.name == "it1/policy")
    command = Command(finished.words, tmp_path, "log", "iter=1")
    code, _, err = command.run(f"{policy.key} 30 0")
    assert code == -signal.SIGKILL and "Traceback" not in err, err
    assert not store.has(policy) and store.leftovers() and assert_whole(store)
    before = {path: identity(path) for path in store.artifacts()}
    assert call(*words) == 0
    whole = contents(finished.store)
    found = contents(store)
    assert len(found) == len(nodes) and found == {name: whole[name] for name in found}
    assert before.items() <= {path: identity(path) for path in store.artifacts()}.items(), "something was made twice"
    assert not store.leftovers()


class Whole(NamedTuple):
    """An uninterrupted run: its words without store and runs, what it plans and writes, its artifacts and metrics."""

    words: list[str]
    nodes: list[Node]
    writes: dict[str, int]
    contents: dict[str, dict[str, str]]
    metrics: list[dict[str, float]]

    def moment(self, missing: list[Node], aims: Counter[str], chance: random.Random) -> str:
        """In one of the next artifacts, of the kind least aimed at, or shortly after; half between two writes."""
        node = min(missing[:4], key=lambda node: (aims[node.stage.kind], chance.random()))
        aims[node.stage.kind] += 1
        return f"{node.key} {chance.randint(1, self.writes[node.key])} {chance.choice((0.0, chance.uniform(0, 0.2)))}"

    def check(self, place: Path) -> None:
        store = Store(place / "store")
        assert_whole(store)
        assert contents(store) == self.contents
        assert not store.leftovers()


Identity = tuple[int, int]


def identity(artifact: Path) -> Identity:
    """Of the folder, which is renamed into place; another attempt's is another."""
    return artifact.stat().st_ino, (artifact / RECORD).stat().st_mtime_ns


def assert_whole(store: Store) -> list[Path]:
    """All that is there; returns it."""
    artifacts = store.artifacts()
    assert {str(path): problems for path in artifacts if (problems := damage(path))} == {}
    return artifacts


@pytest.fixture(scope="module")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    place = tmp_path_factory.mktemp("whole")
    words = tiny(llama, place)
    nodes = nodes_of(typed(*words, "iter=2"))
    command = Command(words, place, "log", "iter=2")
    code, _, err = command.run()
    assert code == 0, err
    lines = command.log.read_text().splitlines()
    firsts = {node.key: next(n for n, line in enumerate(lines) if node.key in line) for node in nodes}
    ends = [*sorted(firsts.values())[1:], len(lines)]
    writes = {key: ends[place] - firsts[key] for place, key in enumerate(sorted(firsts, key=firsts.__getitem__))}
    (run,) = (place / "runs").iterdir()
    return Whole(words, nodes, writes, contents(Store(place / "store")), metric_lines(run))


def hit(whole: Whole, place: Path, seed: int, number: int, aims: Counter[str]) -> int:
    """Start the command again and again, at most LONG times to be hit; after each hit all that is there is whole.
    Counts the kinds aimed at; returns how often it was hit.
    """
    place.mkdir()
    command, store = Command(whole.words, place, "log", "iter=2"), Store(place / "store")
    ended = -number if number == signal.SIGKILL else 128 + number  # its handler is set before the first write
    hits, made, code, chance = 0, defaultdict[str, set[Identity]](set), None, random.Random(seed)
    while code != 0:
        missing = [node for node in whole.nodes if not store.has(node)]
        at = whole.moment(missing, aims, chance) if missing and hits < LONG else ""
        code, _, err = command.run(at, CRASH_SIGNAL=str(int(number)))
        assert code in ((0, ended) if at else (0,)) and "Traceback" not in err, f"{at}: {code}, {err}"
        for path in assert_whole(store):
            made[path.name].add(identity(path))
        hits += code != 0
    whole.check(place)
    (run,) = (place / "runs").iterdir()
    assert metric_lines(run) == whole.metrics
    assert len(made) == len(whole.nodes) and {len(found) for found in made.values()} == {1}
    return hits


@pytest.mark.faults
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_hit_at_many_moments_of_all_stages_it_ends_with_the_same_bytes(
    number: int, whole: Whole, tmp_path: Path
) -> None:
    aims, hits, seed = Counter[str](), 0, 0
    while hits < LONG:
        seed += 1
        hits += hit(whole, tmp_path / str(seed), seed, number, aims)
    print(f"{hits} hits in {seed} runs, aimed at {dict(aims)}")
    assert set(aims) == {node.stage.kind for node in whole.nodes}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many kilobytes, or gives the one that is there another size."""
    (place := tmp_path / "small").mkdir()

    def mount(size: int) -> Path:
        again = ["-o", f"remount,size={size}k"] if place.is_mount() else ["-t", "tmpfs", "-o", f"size={size}k"]
        done = subprocess.run(["mount", *again, "none", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounts no tmpfs: {done.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", "--lazy", place], capture_output=True)


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_a_disk_that_is_full_again_and_again_is_one_line_and_with_more_room_it_goes_on(
    whole: Whole, small: Callable[[int], Path]
) -> None:
    for failures in range(60):
        place = small(round(64 * 1.3**failures))
        code, _, err = Command(whole.words, place, "log", "iter=2").run()
        assert_whole(Store(place / "store"))
        if code == 0:
            break
        (line,) = (line for line in err.replace("\r", "\n").splitlines() if "error: " in line)
        assert code == 3 and "Traceback" not in err and "room" in line, err
    whole.check(place)
    assert failures >= 8


def all_done(commands: Iterable[Command]) -> list[str]:
    """Started at once; what they say."""
    started = [command.start() for command in commands]
    ended = [(process.communicate(timeout=TIMEOUT_S)[1], process.returncode) for process in started]
    assert all(code == 0 and "Traceback" not in said for said, code in ended), ended
    return [said for said, _ in ended]


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_eight_processes_race_to_make_everything_once_and_to_mend_what_is_damaged_then(
    whole: Whole, tmp_path: Path
) -> None:
    place = tmp_path / "run"
    commands = [Command(whole.words, place, f"log{n}", "iter=2", f"name=run{n}") for n in range(8)]
    all_done(commands)
    lines = [line for command in commands for line in command.log.read_text().splitlines()]
    placed = Counter(found[1] for line in lines if (found := FINAL.fullmatch(line)))
    assert set(placed.values()) == {1} and len(placed) == len(whole.nodes)
    whole.check(place)
    for number, node in enumerate(whole.nodes):
        if node.stage.kind in ("responses", "pairs"):
            path = Store(place / "store").path(node) / ("rows.parquet" if number % 2 else RECORD)
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    assert "damaged" in "".join(all_done(commands))
    whole.check(place)
