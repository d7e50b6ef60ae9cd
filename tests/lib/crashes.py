"""A run that is hit at chosen moments and started again until it is done, as the real command in processes of its own.

A moment is a number of writes (tests/lib/crashing/sitecustomize.py) after an artifact was begun, and a delay: so every
artifact is hit, while it is written and between two writes.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from tiny_run import ROOT, folders

from src.artifact import Node
from src.provenance import RECORD, damage
from src.store import Store

HOOK = Path(__file__).parent / "crashing"
DELAY_S = 0.2
TIMEOUT_S = 900
"""For a command beside seven others."""


class Moment(NamedTuple):
    """To be hit after so many writes from the artifact's first one on, and some seconds."""

    node: Node
    writes: int
    delay: float

    def __str__(self) -> str:
        return f"{self.node.name} after {self.writes} writes and {self.delay:.2f} s"


class Done(NamedTuple):
    code: int
    out: str
    err: str
    writes: list[str]


class Command:
    """`python -m src.main` with a store at `place`; what it writes there is noted."""

    def __init__(self, words: list[str], place: Path, log: Path, *more: str) -> None:
        self.store, self.log = place / "store", log
        self.words = [sys.executable, "-u", "-m", "src.main", *words, *folders(place), *more]

    def start(self, moment: Moment | None = None, **env: str) -> subprocess.Popen[str]:
        """In a process group of its own, to be hit at the moment."""
        for file in (self.log, self.log.with_name(f"{self.log.name}.crashed")):
            file.unlink(missing_ok=True)
        if moment:
            env["CRASH_AT"] = f"{moment.node.key} {moment.writes} {moment.delay}"
        told = {"CRASH_STORE": str(self.store), "CRASH_LOG": str(self.log), "PYTHONPATH": str(HOOK)}
        return subprocess.Popen(
            self.words,
            cwd=ROOT,
            env=os.environ | told | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def run(self, moment: Moment | None = None, **env: str) -> Done:
        with self.start(moment, **env) as process:
            out, err = process.communicate(timeout=TIMEOUT_S)
        writes = self.log.read_text().splitlines() if self.log.exists() else []
        return Done(process.returncode, out, err, writes)


def writes_of(done: Done, nodes: list[Node]) -> dict[str, int]:
    """Of an uninterrupted run: how many writes there are from an artifact's first one until the next is begun."""
    firsts: dict[str, int] = {}
    for node in nodes:
        firsts[node.key] = next(n for n, line in enumerate(done.writes) if node.key in line)
    starts = sorted(firsts.values())
    ends = dict(zip(starts, [*starts[1:], len(done.writes)], strict=True))
    return {key: ends[first] - first for key, first in firsts.items()}


def next_moment(missing: list[Node], writes: dict[str, int], chance: random.Random, ahead: int) -> Moment:
    """In one of the next artifacts, or shortly after it; half of them between two writes."""
    node = chance.choice(missing[:ahead])
    return Moment(node, chance.randint(1, writes[node.key]), chance.choice((0.0, chance.uniform(0, DELAY_S))))


Identity = tuple[int, int]


class Hits(NamedTuple):
    """How often a command was hit while what was being made, and all folders that each artifact ever was."""

    making: Counter[str]
    made: dict[str, set[Identity]]


def identity(artifact: Path) -> Identity:
    """Of the folder, which is renamed into place; another attempt's is another."""
    found = artifact.stat()
    return found.st_ino, (artifact / RECORD).stat().st_mtime_ns


def assert_whole(store: Store) -> list[Path]:
    """All that is there; returns it."""
    artifacts = store.artifacts()
    broken = {str(path): problems for path in artifacts if (problems := damage(path))}
    assert broken == {}
    return artifacts


def hit_until_done(
    command: Command,
    nodes: list[Node],
    writes: dict[str, int],
    chance: random.Random,
    most: int,
    ahead: int,
    number: int = signal.SIGKILL,
    **env: str,
) -> Hits:
    """Start the command again and again, at most `most` times to be hit; after each hit all that is there is whole."""
    hits, store, done = Hits(Counter(), defaultdict(set)), Store(command.store), None
    ended = -number if number == signal.SIGKILL else 128 + number  # its handler is set before the first write
    while done is None or done.code:
        missing = [node for node in nodes if not store.has(node)]
        moment = next_moment(missing, writes, chance, ahead) if missing and hits.making.total() < most else None
        done = command.run(moment, CRASH_SIGNAL=str(int(number)), **env)
        assert done.code in ((0, ended) if moment else (0,)), f"{moment}: {done.code}, {done.err}"
        assert "Traceback" not in done.err, f"{moment}: {done.err}"
        for path in assert_whole(store):
            hits.made[path.name].add(identity(path))
        if done.code:
            hits.making[re.findall(r"^\[\d+/\d+\] (\S+)", done.out, re.M)[-1]] += 1
    return hits


FINAL = re.compile(r"os\.rename (\w+/[0-9a-f]{20})")
"""An artifact is put into place."""
