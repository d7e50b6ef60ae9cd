"""A file system may carry out writes in another order than they were given, but not across an fsync.

So whatever is renamed into place must be on disk before, with the names that lead to it, and the new name after.
Run: python -m pytest -q tests/test_reordering.py
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tiny_run import call, tiny, typed

from src.artifact import Store
from src.attempts import FOLDER

pytestmark = pytest.mark.slow


class Disk:
    """What is known to be on disk: of each file and folder, what it was like at its last fsync."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.synced: dict[int, tuple[int, int] | set[str]] = {}
        """inode -> time and size of a file; the names in a folder."""
        self.not_on_disk: list[str] = []
        """What was renamed into place before it was on disk."""
        self.new_names: set[Path] = set()
        """Folders that got a new name since their last fsync."""
        self.moved = 0

    def fsync(self, handle: int) -> None:
        path, found = Path(os.readlink(f"/proc/self/fd/{handle}")), os.fstat(handle)
        self.synced[found.st_ino] = set(os.listdir(path)) if path.is_dir() else (found.st_mtime_ns, found.st_size)
        self.new_names.discard(path)

    def rename(self, source: Path, target: Path) -> None:
        if not target.is_relative_to(self.root) or FOLDER.fullmatch(target.name) is None and source.is_dir():
            return  # into an attempt's folder: nothing relies on it before it is finished
        for path in (source, *source.rglob("*")):
            if not self._is_on_disk(path):
                self.not_on_disk.append(f"{path} -> {target}")
        self.moved += 1
        if source.is_dir():
            self.new_names.add(target.parent)

    def _is_on_disk(self, path: Path) -> bool:
        """Names that were removed since may come back: nothing reads them."""
        if path.is_symlink():
            return True
        found = path.stat()
        known = self.synced.get(found.st_ino)
        if path.is_dir():
            return isinstance(known, set) and known.issuperset(os.listdir(path))
        return known == (found.st_mtime_ns, found.st_size)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    found, real = Disk(tmp_path), {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

    def fsync(handle: Any) -> None:
        real["fsync"](handle)
        found.fsync(handle if isinstance(handle, int) else handle.fileno())

    def renaming(name: str) -> Any:
        def rename(source: Any, target: Any, **more: Any) -> None:
            found.rename(Path(source), Path(target))
            real[name](source, target, **more)

        return rename

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renaming("rename"))
    monkeypatch.setattr(os, "replace", renaming("replace"))
    return found


def test_what_is_renamed_into_place_is_on_disk_and_its_name_soon_after(llama: Path, disk: Disk, tmp_path: Path) -> None:
    words = tiny(llama, tmp_path, "iter=1")
    assert call(*words) == 0
    nodes, store = typed(*words).nodes(), Store(tmp_path / "store")
    assert disk.not_on_disk == [] and disk.new_names == set()
    assert disk.moved >= len(nodes) == len(store.artifacts())
