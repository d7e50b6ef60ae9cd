"""A file system may carry out writes in another order than they were given, but not across an fsync.

So whatever is renamed into place must be on disk before, with the names that lead to it, and the new name after.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_run import call, tiny, typed

from src.experiment.graph import nodes_of
from src.experiment.run_folder import write_command
from src.kernel.record import FOLDER, RECORD
from src.kernel.store import MARK, Store
from src.launch.slurm.ledger import Ledger, submission_lock
from src.training.checkpoints import WHOLE

REPORT, SETTINGS = "report.md", "config.yaml"
REPORTED = (SETTINGS, "command.txt", "summary.txt", "plots")
"""Files of a run folder that are whole when its report is there."""


class Disk:
    """The state of each file and folder at its last fsync, which is all that is known to be on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.synced: dict[int, tuple[int, int] | set[str]] = {}
        """inode -> time and size of a file; the names in a folder."""
        self.not_on_disk: list[str] = []
        """A line for each file that was renamed into place, or is said to be whole, before it was on disk."""
        self.changed: set[Path] = set()
        """Folders in which a name has come or gone, on which a promise rests, since their last fsync."""
        self.moved: list[Path] = []

    def sync(self, *paths: Path) -> None:
        """Note that these are on disk, or everything."""
        for path in paths or (self.root, *self.root.rglob("*")):
            stat = path.lstat()
            self.synced[stat.st_ino] = set(os.listdir(path)) if path.is_dir() else (stat.st_mtime_ns, stat.st_size)
            self.changed.discard(path)

    def rename(self, source: Path, target: Path) -> None:
        """Note what is not on disk that the new name says is whole: beside some files, others."""
        if not target.is_relative_to(self.root) or source.is_dir() and not FOLDER.fullmatch(target.name):
            return  # into an attempt's folder: nothing relies on it before it is finished
        others = {WHOLE: os.listdir(target.parent), REPORT: REPORTED}.get(target.name, ())
        beside = [target.parent / name for name in others if name != source.name]
        tree = [path for one in (source, *beside) for path in (one, *one.rglob("*"))]
        self.not_on_disk += [f"{path} -> {target}" for path in tree if not self._is_on_disk(path)]
        named = [*beside, *(self._way(target.parent) if target.name == WHOLE else ())]
        self.not_on_disk += [f"{path}: its name -> {target}" for path in named if not self._has_name(path)]
        if source.is_dir() or target.name == SETTINGS:
            self.not_on_disk += [f"{folder}: its names -> {target}" for folder in self.changed]
        if target.name in (RECORD, MARK, WHOLE) or source.is_dir():
            self.changed.add(target.parent)
        self.moved.append(target)

    def holds(self, file: Path) -> bool:
        """Say whether its content is on disk, and the names that lead to it."""
        return self._is_on_disk(file) and self.leads_to(file)

    def leads_to(self, path: Path) -> bool:
        """Say whether names on disk lead to it from the root."""
        return all(map(self._has_name, self._way(path)))

    def _way(self, path: Path) -> list[Path]:
        return [one for one in (path, *path.parents) if one.is_relative_to(self.root) and one != self.root]

    def _has_name(self, path: Path) -> bool:
        names = self.synced.get(path.parent.stat().st_ino)
        return isinstance(names, set) and path.name in names

    def _is_on_disk(self, path: Path) -> bool:
        """Names that were removed since may come back: nothing reads them."""
        if path.is_symlink():
            return True
        stat = path.stat()
        known = self.synced.get(stat.st_ino)
        if path.is_dir():
            return isinstance(known, set) and known.issuperset(os.listdir(path))
        return known == (stat.st_mtime_ns, stat.st_size)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk, real = Disk(tmp_path), {name: getattr(os, name) for name in ("fsync", "rename", "replace", "unlink")}

    def fsync(handle: Any) -> None:
        real["fsync"](handle)
        disk.sync(Path(os.readlink(f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}")))

    def renaming(name: str) -> Any:
        def rename(source: Any, target: Any, **more: Any) -> None:
            disk.rename(Path(source), Path(target))
            real[name](source, target, **more)

        return rename

    def unlink(path: Any, **more: Any) -> None:
        real["unlink"](path, **more)
        if not more and Path(path).name in (RECORD, REPORT):  # else with the folder it lies in
            disk.changed.add(Path(path).parent)

    patches = {"fsync": fsync, "sync": disk.sync, "unlink": unlink}
    for name, stand_in in (patches | {name: renaming(name) for name in ("rename", "replace")}).items():
        monkeypatch.setattr(os, name, stand_in)
    return disk


def test_what_is_renamed_into_place_is_on_disk_and_its_name_soon_after(llama: Path, disk: Disk, tmp_path: Path) -> None:
    """With the names that lead to it, from a folder that was there."""
    words = tiny(llama, tmp_path, "iter=1", f"store={tmp_path}/of/my/store")
    assert call(*words) == 0
    nodes, store = nodes_of(typed(*words)), Store(tmp_path / "of/my/store")
    victim = store.path(next(node for node in nodes if node.name == "it1/divergence"))
    shutil.rmtree(victim)
    assert call(*words) == 0, "the report goes, and comes again"
    assert disk.not_on_disk == [] and disk.changed == set()
    cells = [file for path in store.cell_folders() for file in path.glob("*.jsonl")]
    assert cells and all(map(disk.holds, [store.root / MARK, *cells])) and all(map(disk.leads_to, store.artifacts()))
    assert len(disk.moved) >= len(nodes) == len(store.artifacts()) and disk.moved.count(victim) == 2
    assert {RECORD, MARK, WHOLE, REPORT, SETTINGS} <= {path.name for path in disk.moved}


def test_a_report_of_other_settings_is_gone_before_these_are_told(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / REPORT).write_text("of others")
    point: Any = SimpleNamespace(folder=tmp_path, settings="iter: 1\n", overrides=[])
    write_command(point)
    assert (tmp_path / SETTINGS).read_text() == point.settings and not (tmp_path / REPORT).exists()
    assert disk.not_on_disk == []


def test_a_submission_is_on_disk_before_it_is_made(disk: Disk, tmp_path: Path) -> None:
    store = tmp_path / "of/my/store"
    with submission_lock(store):
        ledger = Ledger(store)
        ledger.note("it1-training", tmp_path, {0: ["key"]}, {0: []})
    assert disk.holds(ledger.file)
