"""A folder that a run cannot write to, or not beside others, is refused before any work."""

from __future__ import annotations

import errno
import fcntl
import io
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pytest
from tiny_run import call, tiny

from src.kernel.config import Fault, UserError
from src.kernel.disk import check_place
from src.kernel.faults import MESSAGES


def test_a_file_system_without_locks_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library would take a file's being there for a lock, which outlives its owner."""
    words = tiny(tmp_path, tmp_path)
    before = sorted(tmp_path.iterdir())
    for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(number, "x")))
        assert call(*words, "iter=1") == 3
        assert capsys.readouterr().err == f"error: store: {tmp_path}: {MESSAGES[errno.ENOLCK]}\n"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("number", "kind"), [(errno.EROFS, Fault), (errno.EACCES, UserError)])
def test_a_folder_without_permission_is_the_user_s_and_a_read_only_one_the_machine_s(
    number: int, kind: type[UserError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real file systems are in test_read_only.py, where they can be mounted."""
    monkeypatch.setattr(tempfile, "TemporaryFile", Mock(side_effect=OSError(number, "x")))
    with pytest.raises(UserError, match=f"^store: .*{tmp_path}") as error:
        check_place("store", tmp_path / "of" / "mine")
    assert type(error.value) is kind


def test_a_full_disk_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It still takes an empty file."""
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: io.FileIO("/dev/full", "r+"))
    with pytest.raises(Fault, match="^store: .*no space left"):
        check_place("store", tmp_path)
