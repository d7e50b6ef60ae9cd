"""A folder that a run cannot write to, or not beside others, is refused before any work."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_run import call, tiny

from src.kernel.config import Fault, UserError
from src.kernel.disk import NO_LOCKS, check_place
from src.kernel.faults import SAID


def without_locks(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)


def test_a_folder_that_is_not_there_yet_is_none_afterwards_either(tmp_path: Path) -> None:
    check_place("store", tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library would take a file's being there for a lock, which outlives its owner."""
    words = tiny(tmp_path, tmp_path)
    for number in NO_LOCKS:
        without_locks(number, monkeypatch)
        with pytest.raises(Fault, match="keeps no locks"):
            check_place("runs", tmp_path / "runs")
    before = sorted(tmp_path.iterdir())
    assert call(*words, "iter=1") == 3
    assert capsys.readouterr().err == f"error: store: {tmp_path}: {SAID[errno.ENOLCK]}\n"
    assert sorted(tmp_path.iterdir()) == before
    for number in (errno.EINTR, errno.EIO):  # are told where a lock is wanted
        without_locks(number, monkeypatch)
        check_place("store", tmp_path)


@pytest.mark.parametrize(("flags", "kind"), [(os.ST_RDONLY, Fault), (0, UserError)])
def test_a_folder_without_permission_is_the_user_s_and_a_read_only_one_the_machine_s(
    flags: int, kind: type[UserError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real file systems are in test_read_only.py, where they can be mounted."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flags))
    with pytest.raises(UserError, match=f"^store: .*{tmp_path}") as error:
        check_place("store", tmp_path / "store")
    assert type(error.value) is kind
