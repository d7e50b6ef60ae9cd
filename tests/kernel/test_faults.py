"""Failures of the machine become one line."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny_run import composed

from src.kernel.faults import LESS, MESSAGES, RESUMES, explain
from src.launch.mistakes import exit_code


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def of_torch(name: str, text: str) -> BaseException:
    return type(name, (RuntimeError,), {})(text)


def test_a_failed_file_is_named_with_what_failed() -> None:
    for number in MESSAGES:
        assert explain(OSError(number, "x", "/store/rows")) == f"/store/rows: {MESSAGES[number]}{RESUMES}"
    copying = OSError(errno.ENOSPC, "x", "/from", None, "/to")
    assert str(explain(copying)).startswith("/to: no space"), "of a copy the file that was to be written"


FULL = MESSAGES[errno.ENOSPC]
IN_OTHER_WORDS: list[tuple[BaseException, str]] = [
    (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), FULL),
    (OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left"), FULL),
    (caused(ValueError("cannot save"), OSError(errno.ENOSPC, "No space left on device")), FULL),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3648 vs 3540"), "is there room"),
    (RuntimeError("basic_ios::clear: iostream error"), "is there room"),
    (of_torch("OutOfMemoryError", "no words"), LESS),
    (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), LESS),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), LESS),
    (RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel"), "(CUDA error: unspecified launch failure);"),
    (RuntimeError("NCCL error in: x.cpp:1, unhandled system error\nLast error"), "NCCL_DEBUG"),
    (RuntimeError("[x/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), "lost each other"),
    (of_torch("DistNetworkError", "The server socket has failed " + "x" * 999), "lost each other (The server socket"),
]


def test_what_libraries_say_of_disks_memory_devices_and_networks_is_understood_and_short() -> None:
    for error, words in IN_OTHER_WORDS:
        line = str(explain(error))
        assert words in line and "\n" not in line and len(line) <= 500, error


def test_what_is_to_be_lowered_are_keys() -> None:
    keys = re.findall(r"\w+(?:\.\w+)+", LESS)
    assert len(keys) >= 4 and all(OmegaConf.select(composed(), key) for key in keys)


def test_mistakes_of_ours_stay_ours() -> None:
    """An error that rose while one of the machine was handled is another, where that is no cause of it."""
    mistake, unrelated = KeyError("x"), RuntimeError("unrelated")
    for error, suppressed in ((mistake, False), (unrelated, True)):
        error.__context__, error.__suppress_context__ = PermissionError(errno.EACCES, "x", "y"), suppressed
    ours = [ValueError("out of memory"), FileNotFoundError(errno.ENOENT, "x", "y")]
    for error in (mistake, unrelated, *ours, RuntimeError("CUDA error: device-side assert triggered\nCUDA")):
        assert explain(error) is None
        with pytest.raises(type(error)):
            exit_code(error, [])


def test_the_command_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path))
    assert exit_code(error, []) == 3
    assert capsys.readouterr().err == f"error: {tmp_path}: {MESSAGES[errno.EACCES]}{RESUMES}\n"
