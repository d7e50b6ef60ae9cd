"""Files that outlast a crash of the machine, and locks that do not outlast their owner.

A lock is the kernel's (flock): it is free the moment its owner dies. Beside it lies a beat, a small file that the owner
touches every BEAT_S seconds. An owner that hangs, or whose machine is lost while the file server keeps its lock, is
taken over from after LEASE_S seconds without a beat; it ends when it wakes up and finds another's beat. Leases of
filelock (SoftFileLease) would not do: where the file system cannot exchange two names (NFS, SMB), they never free the
lock of a killed process.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from src.kernel.config import Fault, UserError
from src.kernel.faults import MESSAGES

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""The name of a file that `write_atomic` has not finished."""
BEAT_S = 10.0
"""Seconds between two signs of life of an owner."""
LEASE_S = 300.0
"""Seconds without a beat after which an owner loses its lock."""
TAKEN_OVER = "a later attempt has taken over; this one ends"


# Files --------------------------------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Bring a folder and everything in it to disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; the new names are on disk when it returns."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file for good: it does not come back after a crash."""
    path.unlink(missing_ok=True)
    sync(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new, never a mixture."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def remove_temporaries(folder: Path, where: str = "**/*.tmp") -> None:
    """Remove what killed processes left of `write_atomic`, anywhere below the folder or where the pattern says."""
    for path in [path for path in folder.glob(where) if TEMPORARY.fullmatch(path.name)]:
        remove(path)


def check_path(key: str, place: Path) -> Path:
    """Return the lowest part of a path that is there. Raises UserError for a path that can lead to no folder."""
    if not str(place).isprintable():
        raise UserError(f"{key}: {str(place)!r} has characters that cannot be printed; choose another folder")
    parts = [len(os.fsencode(part)) for part in place.absolute().parts]
    if max(parts) > 255 or sum(parts) + len(parts) > 3800:  # of 4,096, for what lies below it
        raise UserError(f"{key}: {str(place):.60}… is too long for a folder; choose a shorter one")
    present = next(folder for folder in (place, *place.absolute().parents) if os.path.lexists(folder))
    if not os.path.isdir(present):
        raise UserError(f"{key}: {present} is no folder, or a link that leads to none; choose another")
    return present


def check_place(key: str, place: Path) -> None:
    """Refuse a folder that a run could not write to: UserError where it is not the user's, Fault for the machine's.

    A file system without flock is refused too: filelock would fall back to lock files, which outlive a dead owner.
    """
    parent = check_path(key, place)
    try:
        with tempfile.TemporaryFile(dir=parent, buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(bytes(2**16))  # a full disk still takes an empty file
    except (PermissionError, FileNotFoundError):  # in /proc no file can be made
        raise UserError(f"{key}: cannot write below {parent}; is it a folder of yours?") from None
    except OSError as error:
        raise Fault(f"{key}: {parent}: {MESSAGES.get(error.errno or 0, error)}") from None


# Locks --------------------------------------------------------------------------------------------------------------


@contextmanager
def turn(file: Path, name: str, doing: str = "making it", waits: bool = True) -> Iterator[bool]:
    """Hold the lock `file` with a beat while `name` is made, after an owner that lives.

    `waits=False`: yields False instead when another process has the lock. A process whose lock was taken over ends at
    once, like a killed one, with exit code 3: its successor resumes from what it has kept.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock, beat = FileLock(file), file.with_name(file.name.replace(".lock", ".beat"))  # not named like a lock
    seen, since = None, 0.0
    while not _taken(lock, BEAT_S if seen else 0):
        if not waits:
            yield False
            return
        now = _last_beat(beat, file)
        if not seen:
            print(f"{name}: {now[0]} is {doing}; waiting", file=sys.stderr, flush=True)
        if now != seen:
            seen, since = now, time.monotonic()  # this process's clock; clocks of machines are never compared
        elif time.monotonic() - since >= LEASE_S:
            print(f"{name}: no sign of life of {now[0]}; taking over", file=sys.stderr, flush=True)
            file.unlink(missing_ok=True)  # the next lock is on a new file
            since = time.monotonic()
    job = os.environ.get("SLURM_JOB_ID")
    owner = f"process {os.getpid()} on {platform.node()}" + (f" (job {job})" if job else "")
    text, ended = f"{owner}\n{uuid.uuid4().hex}\n", threading.Event()

    def repeat() -> None:
        while not ended.wait(BEAT_S):
            with suppress(OSError):
                other = beat.read_text()
                if other == text:
                    os.utime(beat)
                elif other and not ended.is_set():
                    print(f"{name}: {TAKEN_OVER}", file=sys.stderr, flush=True)
                    os._exit(3)

    try:
        beat.write_text(text)
        threading.Thread(target=repeat, daemon=True).start()
        yield True
    finally:
        ended.set()
        with suppress(OSError):
            if beat.read_text() == text:
                beat.unlink()
        lock.release()


def is_held(lock: Path) -> bool:
    """Say whether any process holds the lock. One that may not be read, such as another user's, counts as held."""
    try:
        with suppress(FileNotFoundError), lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except (BlockingIOError, PermissionError):
        return True


def _taken(lock: FileLock, timeout: float) -> bool:
    with suppress(Timeout):
        lock.acquire(timeout=timeout)
    return lock.is_locked


def _last_beat(beat: Path, lock: Path) -> tuple[str, str, float, int]:
    """Return what a waiting process sees of an owner: its name and number, its last beat, the inode of its lock."""
    with suppress(FileNotFoundError):
        owner, _, number = beat.read_text().partition("\n")
        return owner or "another process", number, beat.stat().st_mtime, lock.stat().st_ino
    return "another process", "", 0.0, 0
