"""Who makes an artifact: one attempt at a time, each in a folder of its own.

A lock says whose turn it is, and a beat beside it that its owner lives: SLURM may start a job again while the old one
still runs on a node that it has lost, and some file systems keep the locks of dead machines. An attempt takes what an
earlier one left by renaming its folder, so an earlier one that lives on writes into a folder that is no more; where
several write into one folder, it ends as soon as it sees the other's beat.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import ClassVar, NoReturn

from filelock import FileLock, Timeout

from src.kernel.config import Fault

PARTIAL = ".partial"
FOLDER = re.compile(rf"([0-9a-f]{{20}})({re.escape(PARTIAL)}(-[0-9a-f]{{8}})?)?")
"""Of an artifact, of cells being filled for it, of an attempt at it."""
BEAT_S = 10.0
LEASE_S = 300.0
"""An owner whose beat stands still for so long has lost its turn."""
TAKEN_OVER = "a later attempt has taken over; this one ends"


class Fenced(Fault):
    """Another attempt has taken over."""


@contextmanager
def locked(file: Path, waiting: str) -> Iterator[None]:
    """Hold the file lock `file`; says `waiting` when another process has it. The kernel releases a dead owner's."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(waiting, file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def turn(
    file: Path, name: str, doing: str = "making it", watch: Watch | None = None, ends: bool = False
) -> Iterator[None]:
    """Hold the lock `file` to make `name`, with a beat; takes it over from an owner whose beat stands still.

    `watch` may have begun earlier. `ends`: this process does, at once, when another has taken over from it: for work
    that has no folder of its own to lose.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock, watch = FileLock(file), watch or Watch(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{name}: {watch.owner} is {doing}; waiting", file=sys.stderr, flush=True)
        _await(lock, watch, name)
    with _owned(lock, name, ends):
        yield


@contextmanager
def turn_if_free(file: Path, name: str, ends: bool = False) -> Iterator[bool]:
    """The same without waiting; False where another has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    with suppress(Timeout):
        lock.acquire(timeout=0)
    if not lock.is_locked:
        yield False
        return
    with _owned(lock, name, ends):
        yield True


class Watch:
    """Of the owner of a lock: does its beat go on?"""

    lost: ClassVar[dict[str, float]] = {}
    """Owners whose beat stood still, and when it did last: they have lost their other turns too."""

    def __init__(self, file: Path) -> None:
        self._file, self._beat = file, _beat(file)
        self._last, self._since = _seen(self._beat), time.monotonic()
        self._inode = _inode(file)

    @property
    def owner(self) -> str:
        return _owner(_seen(self._beat)[0])

    def stands_still(self) -> bool:
        """For LEASE_S; no longer than a beat where that owner is known to have stopped with another turn."""
        now = _seen(self._beat)
        if now != self._last:
            self._last, self._since, self._inode = now, time.monotonic(), _inode(self._file)
        owner, beaten = _owner(now[0]), now[1]
        if now[0] and beaten <= self.lost.get(owner, -inf) + BEAT_S:
            return True
        if time.monotonic() - self._since < LEASE_S:
            return False
        self._since = time.monotonic()
        if now[0]:
            self.lost[owner] = beaten
        return True

    def drop_lock(self) -> None:
        """Take the name from the file that the lost owner's lock is on, unless another has taken over meanwhile."""
        if _inode(self._file) == self._inode:
            self._file.unlink(missing_ok=True)


def _await(lock: FileLock, watch: Watch, name: str) -> None:
    while True:
        if watch.stands_still():
            print(f"{name}: no sign of life of {watch.owner}; taking over", file=sys.stderr, flush=True)
            with _one_at_a_time(Path(lock.lock_file)), suppress(Timeout):
                watch.drop_lock()
                lock.acquire(timeout=0)
                return
        with suppress(Timeout):
            lock.acquire(timeout=min(BEAT_S, LEASE_S))
            return


@contextmanager
def _one_at_a_time(file: Path) -> Iterator[None]:
    """Of those that wait for the lock `file`; a dead machine's turn at that is not waited for long."""
    guard = FileLock(file.with_name(f"{file.name}.lost"))
    with suppress(Timeout):
        guard.acquire(timeout=BEAT_S)
    try:
        yield
    finally:
        guard.release()


def _inode(file: Path) -> int | None:
    try:
        return file.stat().st_ino
    except FileNotFoundError:
        return None


def _beat(file: Path) -> Path:
    """Beside the lock; its name does not begin as those of locks do."""
    return file.with_name(file.name.replace(".lock", ".beat"))


def _seen(beat: Path) -> tuple[str, float]:
    """Who beats, and when it did; the clock is the file system's."""
    try:
        return beat.read_text(), beat.stat().st_mtime
    except FileNotFoundError:
        return "", 0.0


def _owner(told: str) -> str:
    return told.partition("\n")[0] or "another process"


@contextmanager
def _owned(lock: FileLock, name: str, ends: bool) -> Iterator[None]:
    try:
        with _beating(_beat(Path(lock.lock_file)), name, ends):
            yield
    finally:
        lock.release()


@contextmanager
def _beating(beat: Path, name: str, ends: bool) -> Iterator[None]:
    """Say every BEAT_S who makes it, until another does."""
    job = os.environ.get("SLURM_JOB_ID")
    who = f"process {os.getpid()} on {platform.node()}" + (f" (job {job})" if job else "")
    own, ended = f"{who}\n{uuid.uuid4().hex}\n", threading.Event()

    def tell() -> None:
        while not ended.wait(BEAT_S):
            with suppress(OSError):
                found = beat.read_text()
                if found == own:
                    os.utime(beat)
                elif found and ends and not ended.is_set():
                    _end(name)

    beat.write_text(own)
    thread = threading.Thread(target=tell, daemon=True)
    try:
        thread.start()  # a signal may end it right here
        yield
    finally:
        ended.set()
        with suppress(OSError):
            if beat.read_text() == own:
                beat.unlink()


def _end(name: str) -> NoReturn:
    """As after a kill: what is not kept yet is another's to make."""
    try:
        print(f"{name}: {TAKEN_OVER}", file=sys.stderr, flush=True)
    finally:
        os._exit(3)


def attempts(final: Path) -> list[Path]:
    """Folders of unfinished attempts at the artifact `final`, the newest first."""
    found = dict[Path, float]()
    for path in final.parent.glob(f"{final.name}{PARTIAL}-*"):
        with suppress(FileNotFoundError):  # it has moved into its place meanwhile
            told = path.lstat()
            if stat.S_ISDIR(told.st_mode):
                found[path] = told.st_mtime
    return sorted(found, key=found.__getitem__, reverse=True)


def begin(final: Path) -> Path:
    """The folder of a new attempt, with what the newest earlier one left; those before it are removed."""
    own = final.with_name(f"{final.name}{PARTIAL}-{uuid.uuid4().hex[:8]}")
    found = attempts(final)
    if found:
        with suppress(FileNotFoundError):  # whoever made it has just finished after all
            os.rename(found[0], own)
    for folder in found[1:]:
        shutil.rmtree(folder, ignore_errors=True)
    return own


@contextmanager
def fenced(own: Path, name: str) -> Iterator[None]:
    """Whatever fails once the folder `own` is another's failed for that. Raises Fenced."""
    try:
        yield
    except Exception as error:
        if own.exists():
            raise
        raise Fenced(f"{name}: {TAKEN_OVER}") from error
