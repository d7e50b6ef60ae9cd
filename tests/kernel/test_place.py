"""A folder that a run cannot write to, or not beside others, is refused before any work."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from tiny_run import call, tiny

from src.kernel.config import Fault, UserError
from src.kernel.disk import NO_LOCKS, check_place
from src.kernel.faults import SAID


def test_a_file_system_without_locks_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library would take a file's being there for a lock, which outlives its owner."""

    def refuse_with(number: int) -> None:
        monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(number, "x")))

    words = tiny(tmp_path, tmp_path)
    for number in NO_LOCKS:
        refuse_with(number)
        with pytest.raises(Fault, match="keeps no locks"):
            check_place("runs", tmp_path / "runs")
    before = sorted(tmp_path.iterdir())
    assert call(*words, "iter=1") == 3
    assert capsys.readouterr().err == f"error: store: {tmp_path}: {SAID[errno.ENOLCK]}\n"
    refuse_with(errno.EIO)  # is told where a lock is wanted
    check_place("store", tmp_path / "a" / "b")
    assert sorted(tmp_path.iterdir()) == before


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
