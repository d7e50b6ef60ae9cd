"""A store that may be read and not written: what is finished is shown, what is missing is refused in one line.

Run: python -m pytest -q tests/kernel/test_read_only.py; where nothing can be mounted it is skipped
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_run import World, call, contents, folders

pytestmark = pytest.mark.faults
Capture = pytest.CaptureFixture[str]
READ_ONLY = "the file system is read-only; mount it for writing, or set store= and runs= to folders elsewhere"


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")


@pytest.fixture
def lock() -> Iterator[Callable[[Path, bool], None]]:
    """Makes a folder read-only, or writable again."""
    mounted: list[Path] = []

    def change(folder: Path, closed: bool) -> None:
        if folder not in mounted:
            mount("--bind", str(folder), str(folder))
            mounted.append(folder)
        mount("-o", f"remount,bind,{'ro' if closed else 'rw'}", str(folder))

    yield change
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], capture_output=True)


@pytest.fixture
def closed(finished: World, tmp_path: Path, lock: Callable[[Path, bool], None]) -> World:
    """Its store is another place's, and read-only."""
    shutil.copytree(finished.place, tmp_path, symlinks=True, dirs_exist_ok=True)
    lock(tmp_path / "store", True)
    return World(tmp_path, [*finished.words, *folders(tmp_path), "iter=2"])


def line_of(capsys: Capture) -> str:
    err = capsys.readouterr().err.replace("\r", "\n")
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if "error: " in line]
    return line


def test_what_is_finished_can_be_read_and_nothing_else_is_done(
    closed: World, lock: Callable[[Path, bool], None], capsys: Capture
) -> None:
    """A run folder is elsewhere; a run with nothing left to make writes its report there."""
    before = contents(closed.store)
    shutil.rmtree(closed.place / "runs")
    (closed.place / "runs").mkdir()
    for verb, more, code in (
        *((["plan"], [], 0), (["verify"], [], 0), (["clean"], [], 2)),
        *(([], ["iter=1"], 0), (["clean"], [], 0), (["clean", "--yes"], [], 3), ([], [], 0)),
    ):
        assert call(*verb, *closed.words, *more) == code, capsys.readouterr().err
    assert (closed.folder / "report.md").exists()
    capsys.readouterr()
    assert call(*closed.words, "seed=1") == 3, "nothing is begun"
    assert line_of(capsys) == f"error: store: {closed.place / 'store'}: {READ_ONLY}"
    assert contents(closed.store) == before
    lock(closed.place / "store", False)
    (closed.artifact("it1/pairs") / "metrics.json").write_text("{}")
    lock(closed.place / "store", True)
    assert call(*closed.words) == 3
    assert READ_ONLY in line_of(capsys)
