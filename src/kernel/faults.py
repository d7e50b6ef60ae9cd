"""Failures of the machine, in whatever words a library has for them."""

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
OURS = (LookupError, TypeError, AttributeError, NameError, AssertionError)
"""What only a mistake in the code raises."""
GOES_ON = "; what is finished is kept, and the same command goes on"
_NUMBER = re.compile(r"(?:os error|\[errno) (\d+)", re.IGNORECASE)
_MEMORY = re.compile(r"out of memory|allocate memory|ALLOC_FAILED", re.IGNORECASE)
_ASKED = re.compile(r"tried to allocate (\d[\d.]* \w+)", re.IGNORECASE)
LESS = (
    "lower hardware.devices.row_tokens or hardware.devices.head_chunk where it trains, hardware.reference_batch_pairs "
    "where it measures, ranker.pmi_batch_prompts where it ranks"
)
"""Engines and scored rankings name their own."""
LOST = "the processes of this job lost each other"
"""Often because one of them has failed in a way of its own."""
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
"""What torch says in a RuntimeError, its kind before it, and what is said of it; an assertion on a device is ours."""
_SHOWN = 160


def explain(error: BaseException) -> str | None:
    """One line for a failure of the machine: what and where, and what to do; None for any other error."""
    for one in _chain(error):
        if isinstance(one, MemoryError):
            return SAID[errno.ENOMEM] + GOES_ON
        number = _number(one)
        if number in SAID:
            place = getattr(one, "filename2", None) or getattr(one, "filename", None)
            return f"{place or 'the store, the run folder or TMPDIR'}: {SAID[number]}{GOES_ON}"
        if isinstance(one, RuntimeError) and (told := _of_torch(one)):
            return told + GOES_ON
    return None


def _of_torch(error: RuntimeError) -> str | None:
    """Known by its words: torch is not imported for that."""
    kind, said = type(error).__name__, str(error)
    if kind == "OutOfMemoryError" or _MEMORY.search(said):
        asked = _ASKED.search(said)
        return f"out of memory{f' ({asked[1]} more were asked for)' if asked else ''}; {LESS}"
    first = said.partition("\n")[0]
    told = next((told for pattern, told in _OF_TORCH if pattern.search(f"{kind}: {first}")), None)
    return told and told.format(first[:_SHOWN])


def _number(error: BaseException) -> int | None:
    """The error's number, which safetensors and pyarrow have in the text alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _NUMBER.search(str(error))
    return int(found[1]) if found else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it came from. An error of ours that rose while another was handled is our error."""
    one: BaseException | None = error
    while one is not None:
        yield one
        handling = None if one.__suppress_context__ or isinstance(one, OURS) else one.__context__
        one = one.__cause__ or handling
