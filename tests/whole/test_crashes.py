"""The real command, hit at chosen moments and started again until it is done: the same bytes, and nothing made twice.

A moment is a number of writes (tests/lib/crashing/sitecustomize.py) after an artifact was begun, and a delay.
`make test` has one kill; `make faults` 64 a signal, at all stages, full disks and races. Commands that are hit so often
are forks of a process that has the imports (tests/lib/fork_server.py).
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from answer_server import IMPATIENT, answering, text_of
from judge_server import longer_wins
from places import LIB, ROOT
from tiny_run import World, call, contents, folders, metric_lines, tiny

from src.kernel.record import RECORD, damage
from src.kernel.store import Store

LONG = 64
"""Hits by a signal."""
TIMEOUT_S = 3600
"""For a command beside seven others, on a machine that has more to do."""
FINAL = re.compile(r"os\.rename store/(\w+/[0-9a-f]{20})")
"""An artifact is put into place."""
BESIDE = ("README.md", "/artifacts/", "/.metrics.jsonl", "/plots", "/.report.md")
"""What is written beside artifacts: parts of paths."""


class Command:
    """`python -m src.main` with store and runs at `place`; what it writes there is noted in a log."""

    def __init__(
        self, world: World, place: Path, *more: str, log: str = "log", python: object = sys.executable
    ) -> None:
        self.place, self.store, self.log = place, Store(place / "store"), place.with_name(f"{place.name}-{log}")
        self.words = [str(python), "-m", "src.main", *world.words, *folders(place), *more]

    def start(self, at: str = "", number: int = signal.SIGKILL) -> subprocess.Popen[str]:
        """Start it in a process group of its own, to be hit at the moment by signal `number`."""
        for file in (self.log, self.log.with_name(f"{self.log.name}.crashed")):
            file.unlink(missing_ok=True)
        env = {"CRASH_AT": at, "CRASH_PLACE": str(self.place), "CRASH_LOG": str(self.log)}
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
    finished: World, forking_python: Path, tmp_path: Path
) -> None:
    policy = next(node for node in finished.nodes() if node.name == "it1/policy")
    command = Command(finished, tmp_path, "iter=1", python=forking_python)
    code, _ = command.run(f"{policy.key} 30 0")
    assert code == 128 + signal.SIGKILL and not command.store.has(policy) and command.store.leftovers()
    before = identities(command.store)
    assert call(*command.words[3:]) == 0
    made, whole = contents(command.store), contents(finished.store)
    assert made == {name: whole[name] for name in made} and any(policy.key in name for name in made)
    assert before.items() <= identities(command.store).items(), "something was made twice"
    assert not command.store.leftovers()


@pytest.fixture(scope="module")
def rich(llama: Path, forking_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A finished run with every kind of stage that needs no network; a server answers prompts and judges."""
    place = tmp_path_factory.mktemp("rich")
    item = {"key": 1, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (place / "items.jsonl").write_text(json.dumps(item))
    with answering() as server:
        server.say = lambda body, number: longer_wins(body, number) if "[answer A" in text_of(body) else "an answer"
        ranker = "benchmark.win_matrix.ranker"
        words = ["+answers@data.answers.gpt=endpoint", f"ranker@{ranker}=llm_judge_pairwise"]
        words += [f"data.answers.gpt.{word}" for word in (f"endpoint.base_url={server.url}", *IMPATIENT)]
        words += ["data.answers.gpt.max_answer_tokens=50", f"{ranker}.endpoint.base_url={server.url}"]
        words += ["benchmark=[ifeval,win_matrix]", f"benchmark.ifeval.path={place / 'items.jsonl'}"]
        words += [f"benchmark.ifeval.{word}" for word in ("max_prompt_tokens=99", "max_new_tokens=4")]
        words += ["hardware=cpu_fp32", "train.optimizer=adamw", "iter=2"]
        words += ["train.batch_pairs=1", "train.epochs=2", "train.schedule_epochs=2"]
        world = World(place, tiny(llama, place, *words))
        assert Command(world, place, python=forking_python).run()[0] == 0
        yield world


def shown(folder: Path, place: Path, whole: Path) -> dict[str, bytes]:
    """Return the files of a run folder, as if `place` were `whole`, without figures of the clock."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    names = [str(path.relative_to(folder)) for path in paths]
    texts = [
        bytes(p.readlink()) if p.is_symlink() else p.read_bytes().replace(bytes(place), bytes(whole)) for p in paths
    ]
    return dict(zip(names, texts, strict=True)) | {"metrics.jsonl": repr(metric_lines(folder)).encode()}


@pytest.mark.faults
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_hit_at_many_moments_of_all_stages_it_ends_with_the_same_bytes(
    number: int, rich: World, forking_python: Path, tmp_path: Path
) -> None:
    """A moment is in one of the next artifacts, in one of the kind least hit, or soon after the start; half are between
    writes. One that comes when the command has ended counts for nothing.

    After each hit, all that is there is whole, and nothing is ever made twice.
    """
    ended, began, nodes = 128 + number, time.monotonic(), rich.nodes()  # SIGTERM: its handler is set before
    parts = dict(zip(BESIDE, BESIDE, strict=True)) | {node.key: re.sub(r"it\d/", "", node.name) for node in nodes}
    lines = Command(rich, rich.place).log.read_text().splitlines()
    first = {text: next(n for n, line in enumerate(lines) if text in line) for text in parts}
    ends = sorted([*first.values(), len(lines)])
    writes = {text: ends[ends.index(n) + 1] - n for text, n in first.items()} | {"": 20}
    hits, runs = Counter[str](), 0
    while hits.total() < LONG or len(hits) < len({*parts.values(), ""}):
        runs += 1
        code, made = None, defaultdict[str, set[tuple[int, int]]](set)
        command = Command(rich, tmp_path / str(runs), python=forking_python)
        while code != 0:
            chance = random.Random(f"{runs} {hits.total()}")
            left = [text for text in sorted(first, key=first.__getitem__) if text not in made]
            text = min([*left[:6], ""], key=lambda text: (hits[parts.get(text, "")], chance.random()))
            at = f"{text} {chance.randint(1, writes[text])} {chance.choice((0.0, chance.uniform(0, 0.2)))}"
            code, err = command.run(at, number)
            assert code in (0, ended), f"{at}: {code}, {err}"
            for name, identity in identities(command.store).items():
                made[name].add(identity)
            if code:
                told = reversed(command.log.read_text().splitlines())
                hits[next((part for line in told for text, part in parts.items() if text in line), "")] += 1
        check_finished(command.store, rich)
        (run,) = (command.place / "runs").iterdir()
        assert shown(run, command.place, rich.place) == shown(rich.folder, rich.place, rich.place)
        assert len(made) == len(nodes) and all(len(identities) == 1 for identities in made.values())
    print(f"{hits.total()} hits by signal {number} in {runs} runs, {time.monotonic() - began:.0f} s: {dict(hits)}")


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
    finished: World, small: Path, forking_python: Path
) -> None:
    command, failures, code = Command(finished, small, "iter=2", python=forking_python), -1, 3
    while code != 0:
        failures += 1
        size = f"remount,size={round(64 * 1.3**failures)}k"
        subprocess.run(["mount", "-o", size, "none", small], check=True)
        code, err = command.run()
        identities(command.store)
        lines = [line for line in err.replace("\r", "\n").splitlines() if "error: " in line]
        assert code == 0 or (code == 3 and len(lines) == 1 and "room" in lines[0]), err
    check_finished(command.store, finished)
    print(f"{failures} full disks")
    assert failures >= 8


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_eight_processes_race_to_make_everything_once_and_to_mend_what_is_damaged_then(
    finished: World, tmp_path: Path, forking_python: Path
) -> None:
    place, python = tmp_path / "run", forking_python
    commands = [Command(finished, place, "iter=2", f"name=run{n}", log=f"log{n}", python=python) for n in range(8)]

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
