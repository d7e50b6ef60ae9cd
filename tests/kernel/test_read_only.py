"""A store that may be read and not written: what is finished is shown, what is missing is refused in one line.

Where nothing can be mounted it is skipped.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_run import World, call, contents, folders

from src.kernel.faults import SAID

pytestmark = pytest.mark.faults


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")


@pytest.fixture
def remount() -> Iterator[Callable[[Path, str], None]]:
    """Mounts a folder read-only (`ro`), or writable again (`rw`)."""
    mounted: list[Path] = []

    def change(folder: Path, way: str) -> None:
        if folder not in mounted:
            mount("--bind", str(folder), str(folder))
            mounted.append(folder)
        mount("-o", f"remount,bind,{way}", str(folder))

    yield change
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], capture_output=True)


def test_what_is_finished_can_be_read_and_nothing_else_is_done(
    finished: World, tmp_path: Path, remount: Callable[[Path, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run folder is elsewhere; a run with nothing left to make writes its report there."""
    shutil.copytree(finished.place, tmp_path, symlinks=True, dirs_exist_ok=True)
    world = World(tmp_path, [*finished.words, *folders(tmp_path), "iter=2"])
    remount(tmp_path / "store", "ro")
    before = contents(world.store)
    shutil.rmtree(world.place / "runs")
    (world.place / "runs").mkdir()
    for verb, more, code in (
        *((["plan"], [], 0), (["verify"], [], 0), (["clean"], [], 2)),
        *(([], ["iter=1"], 0), (["clean"], [], 0), (["clean", "--yes"], [], 3), ([], [], 0)),
    ):
        assert call(*verb, *world.words, *more) == code, capsys.readouterr().err
    assert (world.folder / "report.md").exists()
    capsys.readouterr()
    assert call(*world.words, "seed=1") == 3, "nothing is begun"
    assert capsys.readouterr().err == f"error: store: {tmp_path / 'store'}: {SAID[errno.EROFS]}\n"
    assert contents(world.store) == before
    remount(tmp_path / "store", "rw")
    (world.artifact("it1/pairs") / "metrics.json").write_text("{}")
    remount(tmp_path / "store", "ro")
    assert call(*world.words) == 3
    assert SAID[errno.EROFS] in capsys.readouterr().err
