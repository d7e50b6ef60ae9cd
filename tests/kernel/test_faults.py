"""Failures of the machine become one line."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny_run import call, composed, tiny

from src.faults import GOES_ON, LESS, SAID, explain
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


class OutOfMemoryError(RuntimeError):
    """As torch has it."""


class DistNetworkError(RuntimeError):
    """As torch has it."""


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (
            OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"),
            " (2.50 GiB more were asked for)",
        ),
        (OutOfMemoryError("no words"), ""),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), ""),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), ""),
        (caught(ValueError("x"), OutOfMemoryError("no words")), ""),
    ],
)
def test_too_little_memory_says_what_to_lower(error: Exception, asked: str) -> None:
    assert explain(error) == f"out of memory{asked}; {LESS}{GOES_ON}"


def test_too_little_memory_in_torch_s_own_words() -> None:
    import torch

    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15)
    assert explain(error.value) == f"out of memory ({4 * 10**15} bytes more were asked for); {LESS}{GOES_ON}"


def test_what_is_to_be_lowered_are_keys() -> None:
    keys = re.findall(r"\w+(?:\.\w+)+", LESS)
    assert len(keys) == 4 and all(OmegaConf.select(composed(), key) for key in keys)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel"),
            "(CUDA error: unspecified launch failure);",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), "the device failed"),
        (RuntimeError("NCCL error in: x.cpp:1, unhandled system error\nLast error"), "NCCL_DEBUG"),
        (RuntimeError("[x/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), "lost each other"),
        (DistNetworkError("The server socket has failed to listen " + "x" * 999), "lost each other (The server socket"),
    ],
)
def test_devices_and_the_network_between_them_fail_in_one_short_line(error: Exception, said: str) -> None:
    told = str(explain(error))
    assert said in told and "\n" not in told and len(told) < 500


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: device-side assert triggered\nCUDA"), ValueError("out of memory"), RuntimeError("x")],
)
def test_mistakes_of_ours_on_a_device_stay_ours(error: Exception) -> None:
    assert explain(error) is None


@pytest.mark.full
def test_a_training_that_is_short_of_memory_ends_the_command_with_3(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from src.training import trainer

    monkeypatch.setattr(trainer, "train", lambda *_: torch.empty(10**15))
    assert call(*tiny(llama, tmp_path), "iter=1") == 3
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("error: out of memory (") and "Traceback" not in err


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
