"""An engine for tests of recovery: gives some answers and waits; importable from a process of its own.

And the command beside it, and what stands in for srun and for a bar.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

from src.artifact import WORK
from src.cells import CELLS, cell_of
from src.config import Device, Free, config
from src.generation.contract import Answer, Made, Request, Sampler, Sampling

LIMIT_S = 120.0
"""A wait that nobody ends fails."""
LAST_WORDS = "the card is gone"


def wait_until(condition: Callable[[], Any], what: str = "waited in vain") -> None:
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.02)


@config
class SlowEngine:
    """Gives `first` answers and waits for the file `go`. Notes in `folder` who made which cell, and who waits."""

    apart: ClassVar[bool] = False
    source: ClassVar[str] = "policy"
    device: ClassVar[Device] = "cpu"
    devices_each: ClassVar[int] = 1

    folder: Free[str]
    first: Free[int]
    dies: Free[int | None] = None
    """The worker that says its last words as soon as another one waits."""

    def open(self, policy: Path, sampling: Sampling) -> Sampler:
        return self

    def answers(self, requests: list[Request]) -> Iterator[Made]:
        here = Path(self.folder)
        if self.dies is not None and os.environ["SLURM_PROCID"] == str(self.dies):
            wait_until(lambda: any(here.glob("waits-*")))
            print(LAST_WORDS, file=sys.stderr, flush=True)
            os._exit(7)
        for number, (request, k) in enumerate((r, k) for r in requests for k in r.seeds):
            if number == self.first:
                (here / f"waits-{os.getpid()}").touch()
                wait_until((here / "go").exists)
            with (here / "made").open("a") as file:
                file.write(f"{os.getpid()} {request.prompt_id}/{k}\n")
            seed = request.seeds[k]
            yield Made(request.prompt_id, k, Answer(f"answer {seed}", [seed % 300 + 2, 3], "length"))


@config
class ApartEngine(SlowEngine):
    """The same, always in a process of its own."""

    apart: ClassVar[bool] = True


def made_once(folder: Path) -> dict[str, int]:
    """Cell -> the process that made it."""
    lines = [line.split() for line in (folder / "made").read_text().splitlines()]
    made = {name: int(pid) for pid, name in lines}
    assert len(made) == len(lines), "a cell was made twice"
    return made


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def hear_ctrl_c() -> None:
    """In a child before it starts: what a shell has in its background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Place(NamedTuple):
    """A store that has the prompts and the policy of a run whose engine is slow."""

    folder: Path
    store: Path
    words: list[str]
    started: list[subprocess.Popen[bytes]]

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """The command, in a session of its own: a terminal's Ctrl-C goes to all of it. What it says is in a file."""
        command = [sys.executable, "-m", "src.main", *self.words, *more]
        with (self.folder / f"said{len(self.started)}").open("wb") as said:
            streams: dict[str, Any] = {"stdout": said, "stderr": subprocess.STDOUT, "start_new_session": True}
            self.started.append(
                subprocess.Popen(command, cwd=Path(__file__).parents[2], preexec_fn=hear_ctrl_c, **streams)
            )
        return self.started[-1]

    def said(self, process: subprocess.Popen[bytes]) -> str:
        return (self.folder / f"said{self.started.index(process)}").read_text()

    def await_waiting(self, count: int) -> list[int]:
        """The processes that gave what they may and wait."""
        wait_until(lambda: len(list(self.folder.glob("waits-*"))) == count)
        return [int(path.name.partition("-")[2]) for path in self.folder.glob("waits-*")]

    def go(self) -> None:
        (self.folder / "go").touch()

    def kept(self) -> dict[str, int]:
        """Cell -> the process that made it: each was made once and is kept once."""
        made = made_once(self.folder)
        assert self.cells() == sorted(made)
        return made

    def cells(self) -> list[str]:
        files = (self.store / f".{CELLS}").glob("*/*.jsonl")
        return sorted(cell_of(line)[0] for path in files for line in path.read_bytes().splitlines())

    def logs(self) -> str:
        return "".join(path.read_text() for path in (self.store).glob(f"*/*/{WORK}/**/*.log"))


class Bar(SimpleNamespace):
    """What was said and shown instead of a bar on stderr."""

    def update(self, count: int = 1) -> None:
        self.n += count

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.postfix = text

    def write(self, text: str) -> None:
        self.lines.append(text)

    def close(self) -> None:
        self.closed = True


SRUN = """#!{python}
# srun --label --kill-on-bad-exit=1: numbered tasks, what one says begins with its number, one fails and all are killed.
import os, subprocess, sys, threading, time
words = sys.argv[1:]
assert "--label" in words and "--kill-on-bad-exit=1" in words
tasks, each = (int(words[words.index(flag) + 1]) for flag in ("--ntasks", "--ntasks-per-node"))
def task(n):
    environment = os.environ | {{"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n % each)}}
    return subprocess.Popen(words[words.index("bash") :], env=environment, stderr=subprocess.PIPE, text=True)
def label(n):
    for line in started[n].stderr:
        sys.stderr.write(f"{{n}}: {{line}}")
started = [task(n) for n in range(tasks)]
readers = [threading.Thread(target=label, args=(n,)) for n in range(tasks)]
[reader.start() for reader in readers]
codes = [None]
while None in codes and not any(codes):
    time.sleep(0.02)
    codes = [process.poll() for process in started]
[process.kill() for process in started]
[reader.join() for reader in readers]
for n, code in enumerate(codes):
    if code:
        sys.stderr.write(f"srun: error: node{{n // each}}: task {{n}}: Exited with exit code {{code}}\\n")
        sys.stderr.write("0: too late to be the reason\\n")
sys.exit(max(code or 0 for code in codes))
"""
