"""Failures of the machine as one line that says what to do, in whatever words a library reports them."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

SAID = {
    errno.ENOSPC: "no space left on the file system; make room",
    errno.EDQUOT: "the quota of the file system is used up; make room",
    errno.EROFS: "the file system is read-only; mount it for writing, or set store= and runs= to folders elsewhere",
    errno.EACCES: "no permission; ask its owner, or set store= and runs= to folders of yours",
    errno.EPERM: "not permitted; ask its owner, or set store= and runs= to folders of yours",
    errno.EIO: "the file system failed; look at the disk or its server",
    errno.ESTALE: "the network file system has lost the file; look at its server",
    errno.ENOTCONN: "the file system is not connected; look at its server",
    errno.EMFILE: "too many open files; raise `ulimit -n`",
    errno.ENFILE: "too many open files on this machine; end other processes",
    errno.ENOLCK: "the file system keeps no locks; mount it with flock, or set store= and runs= to folders elsewhere",
    errno.ENOMEM: "out of memory; give the command more of it",
}
MISTAKES = (LookupError, TypeError, AttributeError, NameError, AssertionError)
"""What only a mistake in the code raises."""
GOES_ON = "; what is finished is kept, and the same command goes on"
_NUMBER = re.compile(r"(?:os error|\[errno) (\d+)", re.IGNORECASE)
_MEMORY = re.compile(r"out of memory|allocate memory|ALLOC_FAILED", re.IGNORECASE)
_ALLOCATION = re.compile(r"tried to allocate (\d[\d.]* \w+)", re.IGNORECASE)
LESS = (
    "lower hardware.devices.row_tokens or hardware.devices.head_chunk where it trains, hardware.reference_batch_pairs "
    "where it measures, ranker.pmi_batch_prompts where it ranks"
)
"""The keys to lower where memory is short; engines and scored rankings name theirs themselves."""
LOST = "the processes of this job lost each other"
"""Often because one of them has failed for another reason."""
_OF_TORCH = (
    (
        re.compile(r"iostream error|PytorchStreamWriter failed|inline_container.*unexpected pos"),
        "torch could not write a checkpoint; is there room where the store is?",
    ),
    (
        re.compile(r"NCCL (?:error|failure)|ncclInternal|/gloo/|\bDist(?:Backend|Network|Store)Error: "),
        f"{LOST} ({{}}); look at the others' logs and the network between them, NCCL_DEBUG=INFO says more",
    ),
    (
        re.compile(r"\b(?:CUDA|HIP|cuBLAS|cuDNN) (?:driver )?error(?!.*device-side assert)", re.IGNORECASE),
        "the device failed ({}); look at it (`nvidia-smi`), or take another",
    ),
)
"""Patterns of the class and first line of torch's RuntimeErrors, and what is said of them.

A device-side assertion is a mistake in the code.
"""
_LONGEST = 160
"""Characters of torch's own words that are shown."""


def explain(error: BaseException) -> str | None:
    """Return one line for a failure of the machine: what and where, and what to do; None for any other error."""
    for cause in _chain(error):
        if isinstance(cause, MemoryError):
            return SAID[errno.ENOMEM] + GOES_ON
        number = _number(cause)
        if number in SAID:
            place = getattr(cause, "filename2", None) or getattr(cause, "filename", None)
            return f"{place or 'the store, the run folder or TMPDIR'}: {SAID[number]}{GOES_ON}"
        if isinstance(cause, RuntimeError) and (message := _of_torch(cause)):
            return message + GOES_ON
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and those it came from; a mistake in the code came from none that was being handled."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        handled = None if cause.__suppress_context__ or isinstance(cause, MISTAKES) else cause.__context__
        cause = cause.__cause__ or handled


def _number(error: BaseException) -> int | None:
    """Return the error's number, which safetensors and pyarrow have in the text alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = _NUMBER.search(str(error))
    return int(match[1]) if match else None


def _of_torch(error: RuntimeError) -> str | None:
    """Explain a failure that torch reports. It is known by its words: torch is not imported for that."""
    name, text = type(error).__name__, str(error)
    if name == "OutOfMemoryError" or _MEMORY.search(text):
        asked = _ALLOCATION.search(text)
        return f"out of memory{f' ({asked[1]} more were asked for)' if asked else ''}; {LESS}"
    first = text.partition("\n")[0]
    message = next((message for pattern, message in _OF_TORCH if pattern.search(f"{name}: {first}")), None)
    return message and message.format(first[:_LONGEST])
