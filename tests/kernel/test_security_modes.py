"""A store that a group shares stays one: all files, locks too, have the modes of the umask, and users can go on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import call, tiny
from toy_stages import Steps

from src.kernel.artifact import Node
from src.kernel.store import Store

GROUP = 70000


def test_a_run_in_a_shared_store_leaves_everything_to_its_group(llama: Path, tmp_path: Path) -> None:
    """Also weights, which safetensors lets nobody else read, of start policies that are private where they were."""
    old = os.umask(0o002)
    try:
        assert call(*tiny(llama, tmp_path, "iter=1")) == 0
    finally:
        os.umask(old)
    assert list((tmp_path / "store").rglob("*.safetensors")) and list((tmp_path / "store" / ".locks").iterdir())
    made = [path for name in ("store", "runs") for path in (tmp_path / name).rglob("*") if not path.is_symlink()]
    assert [path for path in made if path.stat().st_mode & 0o060 != 0o060] == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
def test_two_users_of_a_group_share_a_store(tmp_path: Path) -> None:
    """What one has left unfinished the other finishes, and the first may take it away again."""
    Store(tmp_path).make(finished := Node("x", Steps()))  # another user's process, a fork of this one, has all imports
    with tempfile.TemporaryDirectory() as place:
        os.chown(place, 0, GROUP)
        os.chmod(place, 0o2775)
        store = Store(Path(place) / "store")
        assert as_user(70001, lambda: store.make(Node("x", Steps(fails_at=2)))) == 1
        assert store.begun(finished) and as_user(70002, lambda: store.make(finished)) == 0
        assert (store.path(finished) / "done.txt").read_text() == "2 found, 3 made"
        assert as_user(70001, lambda: store.remove(store.path(finished))) == 0 and not store.has(finished)


def as_user(number: int, act: Callable[[], object]) -> int:
    """Act in a process of that user and of the group, whose umask is that of a group; return its exit code."""
    if not (child := os.fork()):
        os.umask(0o002)
        os.setgroups([])
        os.setresgid(GROUP, GROUP, GROUP)
        os.setresuid(number, number, number)
        try:
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
