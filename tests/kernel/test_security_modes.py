"""A store that a group shares stays one: files have the modes of the umask, and locks pass between users."""

from __future__ import annotations

import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from tiny_run import call, tiny
from toy_stages import Steps

from src.kernel.artifact import Node
from src.kernel.store import Store

BEGUN, NODE = Node("x", Steps(fails_at=2)), Node("x", Steps())


@pytest.fixture(autouse=True)
def group_umask() -> Iterator[None]:
    old = os.umask(0o002)
    yield
    os.umask(old)


def closed(place: Path) -> list[Path]:
    """Return the files and folders that their group may not read and write."""
    paths = [path for path in place.rglob("*") if not path.is_symlink()]
    assert paths
    return [path for path in paths if path.stat().st_mode & 0o060 != 0o060]


def test_a_run_in_a_shared_store_leaves_everything_to_its_group(llama: Path, tmp_path: Path) -> None:
    """Also weights, which safetensors lets nobody else read, of start policies that are private where they were."""
    assert call(*tiny(llama, tmp_path, "iter=1")) == 0
    assert list((tmp_path / "store").rglob("*.safetensors"))
    assert closed(tmp_path / "store") == closed(tmp_path / "runs") == []


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Store]:
    """A store of a group of two users, in a place that both can reach; new files in it are the group's.

    An artifact is made elsewhere before, so that another user's process, a fork of this one, has all imports.
    """
    Store(tmp_path / "store").make(NODE)
    if os.getuid():
        pytest.skip("only root can be two users")
    place = Path(tempfile.mkdtemp())
    os.chown(place, 0, 70000)
    place.chmod(0o2775)
    yield Store(place / "store")
    shutil.rmtree(place)


def as_user(number: int, act: Callable[[], None]) -> None:
    """Act in a process of that user and of the group."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(70000, 70000, 70000)
            os.setresuid(number, number, number)
            act()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.full
def test_two_users_of_a_group_share_a_store(shared: Store) -> None:
    """What one has left unfinished the other finishes, what is finished both have, and each cleans the other's."""
    lock = FileLock(shared.root / ".locks" / "x.lock")

    def fail() -> None:
        with pytest.raises(RuntimeError):
            shared.make(BEGUN)

    def finish() -> None:
        assert shared.begun(NODE)
        shared.make(NODE)
        with pytest.raises(Timeout):
            FileLock(lock.lock_file).acquire(timeout=0)

    as_user(70001, fail)
    with lock:  # a third user's
        as_user(70002, finish)
    assert shared.has(NODE) and closed(shared.root) == []
    assert {path.stat().st_uid for path in shared.root.rglob("*")} >= {70001, 70002}
    as_user(70001, lambda: shared.remove(shared.path(NODE)) or os._exit(2))
    assert not shared.has(NODE)
