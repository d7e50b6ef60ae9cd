"""Files and folders that outlast a crash of the machine; folders that cannot be written are refused before any work."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

from src.kernel.config import Fault, UserError
from src.kernel.faults import SAID

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What flock says on a file system without locks."""
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""The name of a file that `write_atomic` has not finished."""


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Bring a folder and everything in it to disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


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


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left of `write_atomic`, anywhere below the folder."""
    for path in [path for path in folder.rglob("*.tmp") if TEMPORARY.fullmatch(path.name)]:
        remove(path)


def check_place(key: str, place: Path) -> None:
    """Refuse a folder that a run could not write to: UserError where it is not the user's, Fault for the machine's.

    A file system without flock is refused too: filelock would fall back to lock files, which outlive a dead owner.
    """
    folders = (place, *place.absolute().parents)
    if broken := next((folder for folder in folders if folder.is_symlink() and not folder.exists()), None):
        raise UserError(f"{key}: {broken} is a link to {os.readlink(broken)}, which is not there; mend the link")
    parent = next(folder for folder in folders if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        if parent.is_dir() and os.statvfs(parent).f_flag & os.ST_RDONLY:
            raise Fault(f"{key}: {parent}: {SAID[errno.EROFS]}")
        raise UserError(f"{key}: cannot write below {parent}; is it a folder of yours?")
    with suppress(OSError), tempfile.TemporaryFile(dir=parent) as file:  # a full disk is reported by who needs room
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                raise Fault(f"{key}: {parent}: {SAID[errno.ENOLCK]}") from None
