"""What must outlast a crash of the machine."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""A file of `write_atomic` that is not whole yet."""


def sync(folder: Path) -> None:
    """The names in a folder, on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """With those above it; the names that are new are on disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def remove(path: Path) -> None:
    """A file, for good."""
    path.unlink(missing_ok=True)
    sync(path.parent)


def sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new, never a mixture."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def remove_temporaries(folder: Path) -> None:
    """Those that a killed process has left anywhere below the folder."""
    for path in [found for found in folder.rglob("*.tmp") if TEMPORARY.fullmatch(found.name)]:
        remove(path)
