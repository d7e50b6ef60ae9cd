"""Failures of the machine become one line."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny_run import composed

from src.kernel.faults import GOES_ON, LESS, SAID, explain
from src.launch.mistakes import exit_code


def caught(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as found:
        return found


def test_a_failed_file_is_named_with_what_failed() -> None:
    for number in SAID:
        told = explain(OSError(number, "x", "/store/rows.parquet"))
        assert told == f"/store/rows.parquet: {SAID[number]}{GOES_ON}"
    copying = OSError(errno.ENOSPC, "x", "/from", None, "/to")
    assert str(explain(copying)).startswith("/to: no space"), "of a copy the file that was to be written"


class OutOfMemoryError(RuntimeError):
    """As torch has it."""


class DistNetworkError(RuntimeError):
    """As torch has it."""


LOST = "Connection closed by peer"
IN_OTHER_WORDS: list[tuple[BaseException, str]] = [
    (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), SAID[errno.ENOSPC]),
    (OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left"), SAID[errno.ENOSPC]),
    (caught(ValueError("cannot save"), OSError(errno.ENOSPC, "No space left on device")), SAID[errno.ENOSPC]),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3648 vs 3540"), "is there room"),
    (RuntimeError("basic_ios::clear: iostream error"), "is there room"),
    (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"), LESS),
    (OutOfMemoryError("no words"), LESS),
    (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), LESS),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), LESS),
    (caught(ValueError("x"), OutOfMemoryError("no words")), LESS),
    (RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel"), "(CUDA error: unspecified launch failure);"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), "the device failed"),
    (RuntimeError("NCCL error in: x.cpp:1, unhandled system error\nLast error"), "NCCL_DEBUG"),
    (RuntimeError("[x/gloo/transport/tcp/pair.cc:547] " + LOST), "lost each other"),
    (DistNetworkError("The server socket has failed to listen " + "x" * 999), "lost each other (The server socket"),
]
OURS = [
    *(RuntimeError("CUDA error: device-side assert triggered\nCUDA"), ValueError("out of memory"), RuntimeError("x")),
    *(ValueError("x"), OSError("no number"), FileNotFoundError(errno.ENOENT, "x", "y")),
]


def test_what_libraries_say_of_disks_memory_devices_and_networks_is_understood_and_short() -> None:
    told = [(str(explain(error)), said) for error, said in IN_OTHER_WORDS]
    assert [line for line in told if line[1] not in line[0] or "\n" in line[0] or len(line[0]) > 500] == []


def test_what_is_to_be_lowered_are_keys() -> None:
    keys = re.findall(r"\w+(?:\.\w+)+", LESS)
    assert len(keys) == 6 and all(OmegaConf.select(composed(), key) for key in keys)


def test_mistakes_of_ours_stay_ours() -> None:
    for error in OURS:
        assert explain(error) is None
        with pytest.raises(type(error)):
            exit_code(error, [])


def test_an_error_that_rose_while_the_machine_s_was_handled_is_another() -> None:
    """A mistake of ours always; any other where the first is no cause of it."""
    for error, suppressed in ((KeyError("x"), False), (RuntimeError("unrelated"), True)):
        error.__context__, error.__suppress_context__ = PermissionError(errno.EACCES, "x", "y"), suppressed
        assert explain(error) is None


def test_the_command_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path))
    assert exit_code(error, []) == 3
    assert capsys.readouterr().err == f"error: {tmp_path}: {SAID[errno.EACCES]}{GOES_ON}\n"
