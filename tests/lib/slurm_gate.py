"""A training of real SLURM jobs that waits at a gate.

Jobs import this module for the class that their config names, so it imports little.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from src.kernel import disk
from src.kernel.artifact import WORK
from src.kernel.config import Free, config
from src.methods.method import PairLogps
from src.methods.sppo import SPPO

CLOSED_AT = 3
"""The step that finds the gate closed: there is a checkpoint by then."""
LEASE = "ITERPREF_TEST_LEASE_S"
"""Variable of jobs: seconds after which an owner that gives no sign of life has lost its turn."""
STOP = f"store/policy/*.partial-*/{WORK}/stop"
"""The file that a signal leaves for the training (src/training/checkpoints.py)."""

if LEASE in os.environ:
    disk.LEASE_S = float(os.environ[LEASE])
    disk.BEAT_S = disk.LEASE_S / 5


@config
class HeldSPPO(SPPO):
    """Waits at a gate in the midst of a training."""

    gate: Free[str]

    def loss(self, p: PairLogps) -> Any:
        Gate(Path(self.gate)).come_by()
        return super().loss(p)


_steps = 0


class Gate(NamedTuple):
    """A folder beside the store; it holds one process of all jobs."""

    folder: Path

    def come_by(self) -> None:
        """Let the first process that finds the gate closed wait until it is opened, or a signal asks it to stop."""
        global _steps
        _steps += 1
        place = self.folder / f"held-{os.getpid()}"
        if _steps >= CLOSED_AT:
            with suppress(FileNotFoundError):  # it is open, or another process waits
                (self.folder / "closed").rename(place)
                while place.exists() and not list(self.folder.parent.glob(STOP)):
                    time.sleep(0.05)
                place.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the gate for the next process that comes by."""
        (self.folder / "closed").touch()

    def open(self) -> None:
        """Let go on who waits, and who comes."""
        for path in self.folder.iterdir():
            path.unlink(missing_ok=True)

    def held(self) -> set[int]:
        """Return the processes that wait."""
        pids = {int(path.name.removeprefix("held-")) for path in self.folder.glob("held-*")}
        return {pid for pid in pids if alive(pid)}


def alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False
