"""Stages of ten lines for the tests of the store."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import ClassVar

from src.kernel.artifact import WORK
from src.kernel.cells import CELLS, Cells
from src.kernel.config import Free, config


@config
class Copy:
    """Writes its own text after the texts that it reads, and a file in a folder."""

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
class Steps:
    """Five steps, each remembered in `work`; fails before step `fails_at`. `done.txt` counts those of each try."""

    kind: ClassVar[str] = "steps"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    fails_at: Free[int | None] = None

    def __call__(self, *inputs: Path, out: Path) -> None:
        done = Cells(out / WORK)
        known = len(done.values)
        for step in range(known, 5):
            if step == self.fails_at:
                raise RuntimeError(f"failed before step {step}")
            done.add({step: {}})
        (out / "done.txt").write_text(f"{known} found, {5 - known} made")


@config
class Restart(Steps):
    """The same steps without a memory."""

    kind: ClassVar[str] = "restart"
    resumable: ClassVar[bool] = False


@config
class Shares:
    """Notes what other artifacts of its group have worked out, and adds its own name."""

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
    """Makes twelve files in `work` that say who made them, and a list of them."""

    kind: ClassVar[str] = "walk"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    name: Free[str]

    def __call__(self, *inputs: Path, out: Path) -> None:
        (out / WORK).mkdir(exist_ok=True)
        steps = [out / WORK / f"{number}.txt" for number in range(12)]
        for step in steps:
            if not step.exists():
                step.write_text(self.name)
                time.sleep(0)
        (out / "walked.txt").write_text("".join(step.read_text() for step in steps))
