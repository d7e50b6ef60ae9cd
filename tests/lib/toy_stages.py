"""Stages of ten lines for the tests of the store; importable from a process of its own."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import ClassVar

from src import attempts, records
from src.artifact import WORK, Node
from src.cells import CELLS, Cells
from src.config import Free, UserError, config
from src.store import Store

ONE_PROMPT = {"prompt_id": "a", "messages": [], "source": "toy", "checks": "[]"}


@config
class Copy:
    """Its own text after the texts it reads, and a file in a folder."""

    kind: ClassVar[str] = "copy"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    text: str
    label: Free[str] = ""

    def __call__(self, *inputs: Path, out: Path) -> None:
        (out / "text.txt").write_text("".join((path / "text.txt").read_text() for path in inputs) + self.text)
        (out / "deep").mkdir()
        (out / "deep" / "empty.bin").touch()


@config
class Rows:
    """`count` rows of a Parquet file."""

    kind: ClassVar[str] = "rows"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    count: int

    def __call__(self, *inputs: Path, out: Path) -> None:
        records.write_rows(out, [ONE_PROMPT] * self.count, records.PROMPTS)


@config
class Steps:
    """Five steps, each remembered in `work`; fails before step `fails_at`. `done` of its output: steps of each try."""

    kind: ClassVar[str] = "steps"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    fails_at: Free[int | None] = None

    def __call__(self, *inputs: Path, out: Path) -> None:
        run_steps(out, self.fails_at)


@config
class Restart:
    """The same, but without a memory."""

    kind: ClassVar[str] = "restart"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    fails_at: Free[int | None] = None

    def __call__(self, *inputs: Path, out: Path) -> None:
        run_steps(out, self.fails_at)


def run_steps(out: Path, fails_at: int | None) -> None:
    journal = records.Journal(out / WORK)
    found = len(journal.rows)
    for step in range(found, 5):
        if step == fails_at:
            raise RuntimeError(f"failed before step {step}")
        journal.add([(step, {})])
    (out / "done.txt").write_text(f"{found} found, {5 - found} made")


@config
class Slow:
    """Writes its process into `log`, waits, writes it again."""

    kind: ClassVar[str] = "slow"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    log: Free[str]
    seconds: Free[float]

    def __call__(self, *inputs: Path, out: Path) -> None:
        (out / "half.txt").write_text("half")
        for moment in ("begins", "ends"):
            with Path(self.log).open("a") as file:
                file.write(f"{os.getpid()} {moment}\n")
            time.sleep(self.seconds)
        (out / "half.txt").rename(out / "whole.txt")


def make_slowly(store: str, log: str, seconds: str) -> None:
    """What the processes of a test do: `python -c "import toy_stages; toy_stages.make_slowly(...)" `."""
    Store(Path(store)).make(Node("slow", Slow(log=log, seconds=float(seconds))))


@config
class Shares:
    """Finds what other artifacts of its group have worked out, and adds its own name."""

    kind: ClassVar[str] = "shares"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    name: str
    group: str
    fails: bool = False

    def shared(self) -> str:
        return self.group

    def __call__(self, *inputs: Path, out: Path) -> None:
        cells = Cells(out / WORK / CELLS)
        (out / "known").write_text(json.dumps(sorted(cells.values)))
        cells.add({self.name: 1.0})
        if self.fails:
            raise RuntimeError("pulled")


@config
class Walk:
    """Twelve steps, each a file in `work` that says who made it; the artifact is the list of them."""

    kind: ClassVar[str] = "walk"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    name: Free[str]
    seconds: Free[float]
    gate: Free[str] = ""
    """A file without which it does not end."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        steps = [out / WORK / f"{number}.txt" for number in range(12)]
        (out / WORK).mkdir(exist_ok=True)
        for step in steps:
            if not step.exists():
                step.write_text(self.name)
                time.sleep(self.seconds)
        while self.gate and not Path(self.gate).exists():
            time.sleep(0.02)
        (out / "walked.txt").write_text("".join(step.read_text() for step in steps))


def walk(store: str, name: str, seconds: str, beat: str, lease: str, gate: str = "") -> None:
    """The same for `Walk`, in a process with a pulse of its own; a mistake ends it as it ends the command."""
    attempts.BEAT_S, attempts.LEASE_S = float(beat), float(lease)
    try:
        Store(Path(store)).make(Node("walk", Walk(name=name, seconds=float(seconds), gate=gate)))
    except UserError as error:
        sys.exit(str(error))
