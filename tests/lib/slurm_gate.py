"""A training of real SLURM jobs that waits at a gate.

Jobs import this module for the class they are told of, so it imports little.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.kernel import disk
from src.kernel.config import Free, config
from src.methods.method import PairLogps
from src.methods.sppo import SPPO

CLOSED_AT = 3
"""The step that finds the gate closed: there is a checkpoint by then."""
LEASE = "ITERPREF_TEST_LEASE_S"
"""In jobs: seconds after which an owner that gives no sign of life has lost its turn."""

if LEASE in os.environ:
    disk.LEASE_S = float(os.environ[LEASE])
    disk.BEAT_S = disk.LEASE_S / 5


@config
class HeldSPPO(SPPO):
    """Waits in the midst of a training."""

    gate: Free[str]

    def loss(self, p: PairLogps) -> Any:
        Gate(Path(self.gate)).come_by()
        return super().loss(p)


_steps = 0


@dataclass
class Gate:
    """A folder where one process of all jobs is held."""

    folder: Path

    def come_by(self) -> None:
        """The first process that finds it closed waits until it is opened, or a signal comes."""
        global _steps
        _steps += 1
        here = self.folder / f"held-{os.getpid()}"
        if _steps < CLOSED_AT:
            return
        try:
            (self.folder / "closed").rename(here)
        except FileNotFoundError:
            return  # it is open, or another waits
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        os.set_blocking(reading, False)
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        try:
            while here.exists():
                with contextlib.suppress(BlockingIOError):
                    os.read(reading, 1)
                    break
                time.sleep(0.05)
        finally:
            signal.set_wakeup_fd(before)
            here.unlink(missing_ok=True)

    def close(self) -> None:
        """For the next process that comes by."""
        (self.folder / "closed").touch()

    def open(self, pid: int | str = "*") -> None:
        """For who waits; without a `pid` also for who comes."""
        for path in [*self.folder.glob(f"held-{pid}"), *self.folder.glob("closed" * (pid == "*") or "none")]:
            path.unlink(missing_ok=True)

    def held(self) -> list[int]:
        """Processes that wait."""
        waiting = [int(path.name.removeprefix("held-")) for path in self.folder.glob("held-*")]
        return [pid for pid in waiting if alive(pid)]


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
