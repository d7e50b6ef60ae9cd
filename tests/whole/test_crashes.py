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
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import LIB, ROOT
from tiny_run import World, call, contents, folders, metric_lines

from src.kernel.record import RECORD, damage
from src.kernel.store import Store

LONG = 24
TIMEOUT_S = 900
"""For a command beside seven others."""
FINAL = re.compile(r"os\.rename (\w+/[0-9a-f]{20})")
"""An artifact is put into place."""


class Command:
    """`python -m src.main` with a store at `place`; what it writes there is noted in a log."""

    def __init__(self, world: World, place: Path, *more: str, log: str = "log") -> None:
        self.store, self.log = Store(place / "store"), place.with_name(f"{place.name}-{log}")
        self.words = [sys.executable, "-u", "-m", "src.main", *world.words, *folders(place), *more]

    def start(self, at: str = "", number: int = signal.SIGKILL) -> subprocess.Popen[str]:
        """Start it in a process group of its own, to be hit at the moment by signal `number`."""
        for file in (self.log, self.log.with_name(f"{self.log.name}.crashed")):
            file.unlink(missing_ok=True)
        env = {"CRASH_AT": at, "CRASH_STORE": str(self.store.root), "CRASH_LOG": str(self.log)}
        env |= {"CRASH_SIGNAL": str(int(number)), "PYTHONPATH": str(LIB / "crashing")}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen(self.words, cwd=ROOT, env=os.environ | env, text=True, process_group=0, **pipes)

    def run(self, at: str = "", number: int = signal.SIGKILL) -> tuple[int, str]:
        """Return its exit code, and what it said on stderr."""
        with self.start(at, number) as process:
            _, err = process.communicate(timeout=TIMEOUT_S)
        assert "Traceback" not in err, err
        return process.returncode, err


def identities(store: Store) -> dict[str, tuple[int, int]]:
    """Check that every artifact that is there is whole; return what tells each from another attempt's."""
    artifacts = store.artifacts()
    assert {str(path): problems for path in artifacts if (problems := damage(path))} == {}
    return {path.name: (path.stat().st_ino, (path / RECORD).stat().st_mtime_ns) for path in artifacts}


def check_finished(store: Store, finished: World) -> None:
    """Check that the store has the bytes of an uninterrupted run, and nothing else."""
    identities(store)
    assert contents(store) == contents(finished.store) and not store.leftovers()


def test_killed_in_the_midst_of_a_training_it_goes_on_and_ends_with_the_same_bytes(
    finished: World, tmp_path: Path
) -> None:
    policy = next(node for node in finished.nodes() if node.name == "it1/policy")
    command = Command(finished, tmp_path, "iter=1")
    code, _ = command.run(f"{policy.key} 30 0")
    assert code == -signal.SIGKILL and not command.store.has(policy) and command.store.leftovers()
    before = identities(command.store)
    assert call(*command.words[4:]) == 0
    made, whole = contents(command.store), contents(finished.store)
    assert made == {name: whole[name] for name in made} and any(policy.key in name for name in made)
    assert before.items() <= identities(command.store).items(), "something was made twice"
    assert not command.store.leftovers()


@pytest.fixture(scope="module")
def writes(finished: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The number of writes of an uninterrupted run from the first one of each artifact to that of the next."""
    command = Command(finished, tmp_path_factory.mktemp("whole"), "iter=2")
    code, err = command.run()
    assert code == 0, err
    lines = command.log.read_text().splitlines()
    first = {node.key: next(n for n, line in enumerate(lines) if node.key in line) for node in finished.nodes()}
    keys = sorted(first, key=first.__getitem__)
    ends = [*(first[key] for key in keys[1:]), len(lines)]
    return {key: end - first[key] for key, end in zip(keys, ends, strict=True)}


@pytest.mark.faults
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_hit_at_many_moments_of_all_stages_it_ends_with_the_same_bytes(
    number: int, finished: World, writes: dict[str, int], tmp_path: Path
) -> None:
    """A moment is in one of the next artifacts, of the kind least aimed at, or shortly after; half are between writes.

    After each hit, all that is there is whole, and nothing is ever made twice.
    """
    ended = -number if number == signal.SIGKILL else 128 + number  # its handler is set before the first write
    aims, hits, seed, nodes = Counter[str](), 0, 0, finished.nodes()
    while hits < LONG:
        seed += 1
        chance, code, made = random.Random(seed), None, defaultdict[str, set[tuple[int, int]]](set)
        (tmp_path / str(seed)).mkdir()
        command = Command(finished, tmp_path / str(seed), "iter=2")
        while code != 0:
            missing, at = [node for node in nodes if not command.store.has(node)], ""
            if missing and hits < LONG:
                node = min(missing[:4], key=lambda node: (aims[node.stage.kind], chance.random()))
                aims[node.stage.kind] += 1
                at = f"{node.key} {chance.randint(1, writes[node.key])} {chance.choice((0.0, chance.uniform(0, 0.2)))}"
            code, err = command.run(at, number)
            assert code in ((0, ended) if at else (0,)), f"{at}: {code}, {err}"
            for name, identity in identities(command.store).items():
                made[name].add(identity)
            hits += code != 0
        check_finished(command.store, finished)
        (run,) = (tmp_path / str(seed) / "runs").iterdir()
        assert metric_lines(run) == metric_lines(finished.folder)
        assert len(made) == len(nodes) and all(len(identities) == 1 for identities in made.values())
    print(f"{hits} hits in {seed} runs, aimed at {dict(aims)}")
    assert set(aims) == {node.stage.kind for node in nodes}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Mount a small file system."""
    (place := tmp_path / "small").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place]).returncode:
        pytest.skip("mounts no tmpfs")
    yield place
    subprocess.run(["umount", "--lazy", place])


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_a_disk_that_is_full_again_and_again_is_one_line_and_with_more_room_it_goes_on(
    finished: World, small: Path
) -> None:
    command, failures, code = Command(finished, small, "iter=2"), -1, 3
    while code != 0:
        failures += 1
        size = f"remount,size={round(64 * 1.3**failures)}k"
        subprocess.run(["mount", "-o", size, "none", small], check=True)
        code, err = command.run()
        identities(command.store)
        lines = [line for line in err.replace("\r", "\n").splitlines() if "error: " in line]
        assert code == 0 or (code == 3 and len(lines) == 1 and "room" in lines[0]), err
    check_finished(command.store, finished)
    assert failures >= 8


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_eight_processes_race_to_make_everything_once_and_to_mend_what_is_damaged_then(
    finished: World, tmp_path: Path
) -> None:
    commands = [Command(finished, tmp_path / "run", "iter=2", f"name=run{n}", log=f"log{n}") for n in range(8)]

    def race() -> str:
        """Start all at once; return what they say."""
        started = [command.start() for command in commands]
        ended = [(process.communicate(timeout=TIMEOUT_S)[1], process.returncode) for process in started]
        assert all(code == 0 and "Traceback" not in err for err, code in ended), ended
        return "".join(err for err, _ in ended)

    race()
    lines = [line for command in commands for line in command.log.read_text().splitlines()]
    placed = Counter(match[1] for line in lines if (match := FINAL.fullmatch(line)))
    nodes, store = finished.nodes(), commands[0].store
    assert set(placed.values()) == {1} and len(placed) == len(nodes)
    check_finished(store, finished)
    for number, node in enumerate(nodes):
        if node.stage.kind in ("responses", "pairs"):
            path = store.path(node) / ("rows.parquet" if number % 2 else RECORD)
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    assert "damaged" in race()
    check_finished(store, finished)
