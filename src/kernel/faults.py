"""Failures of the machine as one line that says what to do, in whatever words a library reports them."""

from __future__ import annotations

import errno
import re
import sys

_NO_LOCKS = "the file system keeps no locks; mount it with flock, or set store= and runs= to folders elsewhere"
MESSAGES = {
    errno.ENOSPC: "no space left on the file system; make room",
    errno.EDQUOT: "the quota of the file system is used up; make room",
    errno.EROFS: "the file system is read-only; mount it for writing, or set store= and runs= to folders elsewhere",
    errno.EACCES: "no permission; ask its owner, or set store= and runs= to folders of yours",
    errno.EIO: "the file system failed; look at the disk or its server",
    errno.ESTALE: "the network file system has lost the file; look at its server",
    errno.EMFILE: "too many open files; raise `ulimit -n`",
    **dict.fromkeys((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP), _NO_LOCKS),
    **dict.fromkeys((errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ELOOP), "something else is there; move it away"),
    errno.ENAMETOOLONG: "the path is too long; choose a shorter one",
    errno.EFBIG: "a file may not become so large; raise `ulimit -f`, or look at the file system",
    errno.ENOMEM: "out of memory; give the command more of it",
}
MISTAKES = (LookupError, TypeError, AttributeError, NameError, AssertionError)
"""Errors that only a mistake in the code raises."""
RESUMES = "; what is finished is kept, and the same command resumes"
LESS = (
    "lower hardware.engine.batch_answers where it samples, hardware.ranking.batch_tokens or ranker.pmi_batch_prompts "
    "where it ranks, hardware.reference_batch_pairs where it measures, hardware.devices.row_tokens or "
    "hardware.devices.head_chunk where it trains"
)
"""The keys to lower where memory is short."""
LOST = "the processes of this job lost each other"
"""Often because one of them has failed for another reason."""
_OF_TORCH = {
    r"OutOfMemoryError|out of memory|allocate memory|ALLOC_FAILED": f"out of memory; {LESS}",
    r"iostream error|PytorchStreamWriter failed|inline_container.*unexpected pos": (
        "torch could not write a checkpoint; is there room where the store is?"
    ),
    r"NCCL (?:error|failure)|ncclInternal|/gloo/|\bDist(?:Backend|Network|Store)Error: ": (
        f"{LOST} ({{}}); look at the others' logs and the network between them, NCCL_DEBUG=INFO says more"
    ),
    r"\b(?:CUDA|HIP|cuBLAS|cuDNN) (?:driver )?error(?!.*device-side assert)": (
        "the device failed ({}); look at it (`nvidia-smi`), or take another"
    ),
}
"""Pattern of the class and first line of a RuntimeError of torch -> the message; the first that fits.

A device-side assertion is a mistake in the code.
"""
_LONGEST = 160
"""Characters of torch's own words that are shown."""


def explain(error: BaseException) -> str | None:
    """Return one line for a failure of the machine: what and where, and what to do; None for any other error.

    Looks at the errors that it came from too; a mistake in the code came from none that was being handled.
    """
    cause: BaseException | None = error
    while cause is not None:
        if line := _line(cause):
            return line + RESUMES
        handled = None if cause.__suppress_context__ or isinstance(cause, MISTAKES) else cause.__context__
        cause = cause.__cause__ or handled
    return None


def _line(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return MESSAGES[errno.ENOMEM]
    if isinstance(error, ModuleNotFoundError):
        return f"{error} in {sys.executable}; `make install` brings it"
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := re.search(r"(?:os error|\[errno) (\d+)", text, re.IGNORECASE)):
        number = int(match[1])  # safetensors and pyarrow have it in the text alone
    if number in MESSAGES:
        place = getattr(error, "filename2", None) or getattr(error, "filename", None)
        return f"{place or 'the store, the run folder or TMPDIR'}: {MESSAGES[number]}"
    first = text.partition("\n")[0]
    for pattern, message in _OF_TORCH.items():
        if isinstance(error, RuntimeError) and re.search(pattern, f"{type(error).__name__}: {first}", re.IGNORECASE):
            return message.format(first[:_LONGEST])
    return None
