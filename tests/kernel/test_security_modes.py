"""A store that a group shares stays one: files have the modes of the umask, and locks pass between users."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from tiny_run import call, tiny
from toy_stages import Steps

from src.kernel.artifact import Node
from src.kernel.store import Store
from src.modeling.checkpoints import Checkpoint


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Of this process alone: what it starts has it too."""
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def closed(place: Path, bits: int) -> list[str]:
    """Files and folders without all of `bits`; what they are links to is looked at itself."""
    found = [path for path in place.rglob("*") if not path.is_symlink()]
    assert found
    return [f"{oct(mode(path))} {path.relative_to(place)}" for path in found if mode(path) & bits != bits]


def test_a_run_in_a_shared_store_leaves_everything_to_its_group(llama: Path, tmp_path: Path) -> None:
    """Weights too, which safetensors lets nobody else read, of start policies that are private where they came from."""
    with umask(0o002):
        assert call(*tiny(llama, tmp_path, "iter=1")) == 0
    assert list((tmp_path / "store").rglob("*.safetensors"))
    assert closed(tmp_path / "store", 0o060) == [] and closed(tmp_path / "runs", 0o060) == []


def test_what_is_brought_has_the_mode_of_this_store(llama: Path, tmp_path: Path) -> None:
    for mask, expected in ((0o002, 0o664), (0o027, 0o640), (0o077, 0o600)):
        out = tmp_path / oct(mask)
        with umask(mask):
            out.mkdir()
            Checkpoint(name="x", repo=str(llama), revision="main")(out=out)
        assert {mode(path) for path in out.iterdir()} == {expected}


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A folder of a group of two users, in a place that both can reach; new files in it are the group's.

    An artifact is made before, so that another user's process, which is forked from this one, has all imports.
    """
    Store(tmp_path / "store").make(Node("x", Steps()))
    if os.getuid():
        pytest.skip("only root can be two users")
    place = Path(tempfile.mkdtemp())
    os.chown(place, 0, 70000)
    place.chmod(0o2775)
    yield place
    shutil.rmtree(place)


def as_user(number: int, act: Callable[[], None]) -> int:
    """In a process of that user and of the group, with the umask of those who share; its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(70000, 70000, 70000)
            os.setresuid(number, number, number)
            os.umask(0o002)
            act()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.full
def test_two_users_of_a_group_share_a_store(shared: Path) -> None:
    """What one has left unfinished the other finishes, what is finished both have, and the other's is cleaned."""
    begun, ended = Node("x", Steps(fails_at=2)), Node("x", Steps())
    lock = shared / "store" / ".locks" / "x.lock"

    def fail() -> None:
        with pytest.raises(RuntimeError):
            Store(shared / "store").make(begun)

    def finish() -> None:
        store = Store(shared / "store")
        assert store.begun(ended)
        store.make(ended)
        with pytest.raises(Timeout):
            FileLock(lock).acquire(timeout=0)

    def clean() -> None:
        assert Store(shared / "store").remove(Store(shared / "store").path(ended))

    assert as_user(70001, fail) == 0
    with umask(0o002), FileLock(lock):  # a third user's
        assert as_user(70002, finish) == 0
    store = Store(shared / "store")
    assert store.has(ended) and closed(shared / "store", 0o060) == []
    assert {path.stat().st_uid for path in shared.rglob("*")} >= {70001, 70002}
    assert as_user(70001, clean) == 0 and not store.has(ended)
