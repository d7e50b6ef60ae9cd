"""A training and a generation of real SLURM jobs that wait at a gate.

Jobs import this module for the classes they are told of, so it imports little.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src import attempts
from src.config import Free, config
from src.generation.contract import Made, Request, Sampler, Sampling
from src.generation.transformers_engine import TransformersEngine
from src.methods.pair_logps import PairLogps
from src.methods.sppo import SPPO
from src.slurm import allocation

TRAINING, GENERATION = "training", "generation"
CLOSED_AT = 3
"""What comes by for so many times finds the gate closed: a training has a checkpoint by then, a generation answers."""
LEASE = "ITERPREF_TEST_LEASE_S"
"""In jobs: seconds after which an owner that gives no sign of life has lost its turn."""
LONGEST_WAIT = "ITERPREF_TEST_LONGEST_WAIT_S"
"""In jobs: seconds that a start without progress waits at most."""
BROKEN = "the scratch disk of this node is broken"

if LEASE in os.environ:
    attempts.LEASE_S = float(os.environ[LEASE])
    attempts.BEAT_S = attempts.LEASE_S / 5
if LONGEST_WAIT in os.environ:
    allocation.LONGEST_WAIT_S = float(os.environ[LONGEST_WAIT])


@config
class HeldSPPO(SPPO):
    """Waits in the midst of a training."""

    gate: Free[str]

    def loss(self, p: PairLogps) -> Any:
        _come_by(Path(self.gate), TRAINING)
        return super().loss(p)


@config
class HeldEngine(TransformersEngine):
    """Waits in the midst of the answers of an iteration."""

    gate: Free[str]

    def open(self, policy: Path, sampling: Sampling) -> Sampler:
        return _HeldSampler(super().open(policy, sampling), Path(self.gate))


@dataclass
class _HeldSampler:
    sampler: Sampler
    gate: Path

    def answers(self, requests: list[Request]) -> Iterator[Made]:
        for made in self.sampler.answers(requests):
            yield made
            if "evaluation" not in os.environ.get("SLURM_JOB_NAME", "") and _is_last():
                _come_by(self.gate, GENERATION)


def _is_last() -> bool:
    """Of the elements of an array: the one that has the array's own id."""
    return os.environ.get("SLURM_ARRAY_TASK_ID") == os.environ.get("SLURM_ARRAY_TASK_MAX")


_came = dict.fromkeys((TRAINING, GENERATION), 0)


def _come_by(gate: Path, name: str) -> None:
    """The first process that finds it closed waits until it is opened, or a signal comes."""
    _came[name] += 1
    if (gate / f"broken-{name}").exists():
        raise OSError(BROKEN)
    if _came[name] < CLOSED_AT or not (gate / name).exists():
        return
    here = gate / f"{name}-{os.getpid()}"
    try:
        (gate / name).rename(here)
    except FileNotFoundError:
        return  # another waits
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        while here.exists() and not _readable(reading):
            time.sleep(0.05)
    finally:
        signal.set_wakeup_fd(before)
        here.unlink(missing_ok=True)


def _readable(handle: int) -> bool:
    try:
        return bool(os.read(handle, 1))
    except BlockingIOError:
        return False


@dataclass
class Gate:
    """Where one process of all jobs is held."""

    folder: Path

    def close(self, name: str = TRAINING) -> None:
        """For the next process that comes by."""
        (self.folder / name).touch()

    def open(self, name: str = TRAINING) -> None:
        """For who waits, and for who comes."""
        for path in self.folder.glob(f"{name}*"):
            path.unlink(missing_ok=True)

    def let_go(self, pid: int) -> None:
        """Of those that wait."""
        for path in self.folder.glob(f"*-{pid}"):
            path.unlink()

    def breaks(self, name: str = TRAINING, broken: bool = True) -> None:
        """From now on, whoever comes by fails; or no more."""
        place = self.folder / f"broken-{name}"
        place.touch() if broken else place.unlink()

    def held(self, name: str = TRAINING) -> list[int]:
        """Processes that wait."""
        waiting = [int(path.name.rpartition("-")[2]) for path in self.folder.glob(f"{name}-*")]
        return [pid for pid in waiting if alive(pid)]


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
