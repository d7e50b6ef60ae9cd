"""Folders that a run writes to: refused before any work where that cannot be done, or not beside others."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from src.kernel.config import Fault, UserError
from src.kernel.faults import SAID

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def check_place(key: str, place: Path) -> None:
    """Raises UserError for a folder that is not the user's to write, Fault for a file system that cannot serve."""
    folders = (place, *place.absolute().parents)
    if lost := next((folder for folder in folders if folder.is_symlink() and not folder.exists()), None):
        raise UserError(f"{key}: {lost} is a link to {os.readlink(lost)}, which is not there; mend the link")
    parent = next(folder for folder in folders if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        if parent.is_dir() and os.statvfs(parent).f_flag & os.ST_RDONLY:
            raise Fault(f"{key}: {parent}: {SAID[errno.EROFS]}")
        raise UserError(f"{key}: cannot write below {parent}; is it a folder of yours?")
    with suppress(OSError), tempfile.TemporaryFile(dir=parent) as file:  # who needs room tells of a full disk
        _check_locks(key, parent, file.fileno())


def _check_locks(key: str, parent: Path, handle: int) -> None:
    """Without flock, the library takes a file's being there for a lock: nobody releases that of a dead process."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise Fault(f"{key}: {parent}: {SAID[errno.ENOLCK]}") from None
