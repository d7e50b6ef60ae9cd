"""A store that may be read and not written: what is finished is shown, what is missing is refused in one line.

Where nothing can be mounted it is skipped.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import World, call, contents, folders

from src.kernel.faults import MESSAGES

pytestmark = pytest.mark.faults


@pytest.fixture
def read_only(world: World) -> Iterator[Path]:
    """The store of `world`, mounted read-only."""
    store = world.store.root
    try:
        for words in (["--bind", store, store], ["-o", "remount,bind,ro", store]):
            done = subprocess.run(["mount", *words], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"cannot mount: {done.stderr.strip()}")
        yield store
    finally:
        subprocess.run(["umount", "--lazy", store], capture_output=True)


def test_what_is_finished_can_be_read_and_nothing_else_is_done(
    world: World, read_only: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run folder is elsewhere; a run with nothing left to make writes its report there."""
    words, before = [*world.words, *folders(world.place), "iter=2"], contents(world.store)
    shutil.rmtree(world.place / "runs")
    (world.place / "runs").mkdir()
    for verb, more, code in (
        *((["plan"], [], 0), (["verify"], [], 0), (["clean"], [], 2)),
        *(([], ["iter=1"], 0), (["clean"], [], 0), (["clean", "--yes"], [], 3), ([], [], 0)),
    ):
        assert call(*verb, *words, *more) == code, capsys.readouterr().err
    assert (world.folder / "report.md").exists()
    capsys.readouterr()
    assert call(*words, "seed=1") == 3, "nothing is begun"
    assert capsys.readouterr().err == f"error: store: {read_only}: {MESSAGES[errno.EROFS]}\n"
    assert contents(world.store) == before
