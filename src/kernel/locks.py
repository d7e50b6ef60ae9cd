"""Locks between processes and machines: one owner at a time, and a lost owner is replaced.

The lock is the kernel's (flock): it is free the moment its owner dies. Beside it lies a beat, a small file that the
owner touches every BEAT_S seconds: an owner that hangs, or whose machine is lost while the file server keeps its lock,
is taken over from after LEASE_S seconds without a beat. Leases of filelock (SoftFileLease) would not do: where the file
system cannot exchange two names (NFS, SMB), they never free the lock of a killed process.
"""

from __future__ import annotations

import fcntl
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

BEAT_S = 10.0
LEASE_S = 300.0
"""Seconds without a beat after which an owner has lost its lock."""
TAKEN_OVER = "a later attempt has taken over; this one ends"


@contextmanager
def locked(file: Path, waiting: str) -> Iterator[None]:
    """Hold the lock `file` for a moment's work; prints `waiting` when another process has it."""
    lock = _lock(file)
    if not _taken(lock):
        print(waiting, file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def turn(file: Path, name: str, doing: str = "making it", ends: bool = False) -> Iterator[None]:
    """Hold the lock `file` with a beat while `name` is made; waits for an owner that lives.

    `ends`: this process exits at once when another has taken over from it. For work that has no folder of its own, so
    that a late writer would meet its successor.
    """
    lock = _lock(file)
    if not _taken(lock):
        _wait(lock, file, name, doing)
    with _beating(lock, file, name, ends):
        yield


@contextmanager
def turn_if_free(file: Path, name: str, ends: bool = False) -> Iterator[bool]:
    """Like `turn`, but yields False instead of waiting when another process has the lock."""
    lock = _lock(file)
    if not _taken(lock):
        yield False
        return
    with _beating(lock, file, name, ends):
        yield True


def is_held(lock: Path) -> bool:
    """Say whether any process holds the lock. Needs no right to write. Raises OSError where it cannot be read."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _lock(file: Path) -> FileLock:
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file)


def _taken(lock: FileLock, timeout: float = 0) -> bool:
    with suppress(Timeout):
        lock.acquire(timeout=timeout)
    return lock.is_locked


def _wait(lock: FileLock, file: Path, name: str, doing: str) -> None:
    """Acquire the lock when its owner gives it back, or when its beat has stood still for LEASE_S.

    Time is this process's monotonic clock: no clocks are compared.
    """
    beat, since = _read(file), time.monotonic()
    print(f"{name}: {_owner(beat)} is {doing}; waiting", file=sys.stderr, flush=True)
    while not _taken(lock, min(BEAT_S, LEASE_S)):
        if (now := _read(file)) != beat:
            beat, since = now, time.monotonic()
        elif time.monotonic() - since >= LEASE_S:
            print(f"{name}: no sign of life of {_owner(beat)}; taking over", file=sys.stderr, flush=True)
            if _taken_over(lock, file, beat):
                return
            since = time.monotonic()


def _taken_over(lock: FileLock, file: Path, beat: tuple[str, float, int]) -> bool:
    """Unlink the lost owner's lock file, so that the next lock is on a new one; another may have been faster."""
    guard = FileLock(file.with_name(f"{file.name}.lost"))  # one at a time of those that wait
    _taken(guard, BEAT_S)  # a lost machine may hold this one too
    try:
        if _read(file)[2] == beat[2]:
            file.unlink(missing_ok=True)
        return _taken(lock)
    finally:
        guard.release()


def _beat(file: Path) -> Path:
    """Where the owner of the lock beats; its name does not begin as those of locks do."""
    return file.with_name(file.name.replace(".lock", ".beat"))


def _read(file: Path) -> tuple[str, float, int]:
    """What a waiting process sees of an owner: who it is, when it has beaten, and the inode that its lock is on."""
    text, beaten, inode = "", 0.0, 0
    with suppress(FileNotFoundError):
        inode = file.stat().st_ino
        text, beaten = _beat(file).read_text(), _beat(file).stat().st_mtime
    return text, beaten, inode


def _owner(beat: tuple[str, float, int]) -> str:
    return beat[0].partition("\n")[0] or "another process"


@contextmanager
def _beating(lock: FileLock, file: Path, name: str, ends: bool) -> Iterator[None]:
    """Beat until the body ends or another process does; then give the lock back."""
    job = os.environ.get("SLURM_JOB_ID")
    owner = f"process {os.getpid()} on {platform.node()}" + (f" (job {job})" if job else "")
    beat, text, ended = _beat(file), f"{owner}\n{uuid.uuid4().hex}\n", threading.Event()

    def repeat() -> None:
        while not ended.wait(BEAT_S):
            with suppress(OSError):
                found = beat.read_text()
                if found == text:
                    os.utime(beat)
                elif found and ends and not ended.is_set():
                    _end(name)

    try:
        beat.write_text(text)
        threading.Thread(target=repeat, daemon=True).start()
        yield
    finally:
        ended.set()
        with suppress(OSError):
            if beat.read_text() == text:
                beat.unlink()
        lock.release()


def _end(name: str) -> NoReturn:
    """End this process like a kill: what it has not kept yet is the other's to make."""
    try:
        print(f"{name}: {TAKEN_OVER}", file=sys.stderr, flush=True)
    finally:
        os._exit(3)
