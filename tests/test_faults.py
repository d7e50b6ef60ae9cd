"""Failures of the machine become one line."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from src.faults import GOES_ON, SAID, explain
from src.main import guarded


def caught(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as found:
        return found


@pytest.mark.parametrize("number", SAID)
def test_every_number_is_said_with_its_file(number: int) -> None:
    told = explain(OSError(number, "x", "/store/rows.parquet"))
    assert told == f"/store/rows.parquet: {SAID[number]}{GOES_ON}"


def test_of_a_copy_the_file_that_was_to_be_written_is_named() -> None:
    assert str(explain(OSError(errno.ENOSPC, "x", "/from", None, "/to"))).startswith("/to: no space")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
        caught(ValueError("cannot save"), OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_a_library_s_own_words_for_it_are_understood(error: BaseException) -> None:
    assert SAID[errno.ENOSPC] in str(explain(error))


def test_torch_s_writer_says_neither_file_nor_reason() -> None:
    said = "[enforce fail at inline_container.cc:672] . unexpected pos 3648 vs 3540"
    assert "is there room" in str(explain(RuntimeError(said)))
    assert "is there room" in str(explain(RuntimeError("basic_ios::clear: iostream error")))


@pytest.mark.parametrize("error", [ValueError("x"), OSError("no number"), FileNotFoundError(errno.ENOENT, "x", "y")])
def test_whatever_else_goes_wrong_is_a_fault_of_ours(error: Exception) -> None:
    def act() -> int:
        raise error

    assert explain(error) is None
    with pytest.raises(type(error)):
        guarded(act)


@pytest.mark.parametrize("ours", [KeyError("x"), TypeError("x"), AssertionError("x")])
def test_a_mistake_of_ours_while_the_machine_s_is_handled_is_ours(ours: Exception) -> None:
    try:
        try:
            raise PermissionError(errno.EACCES, "x", "y")
        except PermissionError:
            raise ours  # noqa: B904
    except Exception as error:
        assert explain(error) is None


def test_a_cause_that_was_taken_away_is_none() -> None:
    try:
        try:
            raise PermissionError(errno.EACCES, "x", "y")
        except PermissionError:
            raise RuntimeError("unrelated") from None
    except RuntimeError as error:
        assert explain(error) is None


def test_the_command_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def act() -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    assert guarded(act) == 3
    assert capsys.readouterr().err == f"error: {tmp_path}: {SAID[errno.EACCES]}{GOES_ON}\n"
