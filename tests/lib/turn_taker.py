"""A process that takes its turn at a folder of answers, or several turns, and works slowly."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from slow_engine import wait_until

from src import attempts
from src.attempts import turn
from src.cells import Cells
from src.generation.turns import alone, beside_others

ROOT = Path(__file__).parents[2]
COUNT = 12
BEAT_S = 0.1
GOES_ON = "from src import attempts; attempts._end = lambda name: None; "
"""First: it does not end when another has taken over."""


def fill(folder: str, share: str, name: str, seconds: str) -> None:
    """Twelve answers, those that are missing: all of them, or as a share. Goes on when it does not hold its turn."""
    attempts.BEAT_S = BEAT_S
    with beside_others(Path(folder), share) if share else alone(Path(folder)):
        cells = Cells(Path(folder))
        missing = [str(k) for k in range(COUNT) if str(k) not in cells.values]
        Path(folder, f"begun-{name}").touch()
        for key in missing:
            cells.add({key: f"answer {key}"})
            time.sleep(float(seconds))


def hold(*files: str) -> None:
    """Turns at all of them, for ever."""
    attempts.BEAT_S = BEAT_S
    with ExitStack() as held:
        for file in files:
            held.enter_context(turn(Path(file), file))
        Path(f"{files[-1]}.held").touch()
        time.sleep(600)


def visit(file: str, seconds: str) -> None:
    """A turn, at which nobody else may be; its owner is lost after a second."""
    attempts.BEAT_S, attempts.LEASE_S = BEAT_S, 1.0
    with turn(Path(file), "it"):
        Path(f"{file}.inside").touch(exist_ok=False)
        time.sleep(float(seconds))
        Path(f"{file}.inside").unlink()


def started(call: str, *words: object, first: str = "") -> subprocess.Popen[str]:
    code = f"import sys; sys.path[:0] = ['tests/lib']; {first}import turn_taker; turn_taker.{call}(*sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE)


@contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[None]:
    """Neither works nor beats, and holds its locks."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@contextmanager
def holding(*files: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has turns at these files and has stopped."""
    process = started("hold", *files)
    try:
        wait_until(Path(f"{files[-1]}.held").exists)
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.communicate()
