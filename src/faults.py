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
    errno.ENOMEM: "out of memory; give the command more of it",
}
OURS = (LookupError, TypeError, AttributeError, NameError, AssertionError)
"""What only a mistake in the code raises."""
GOES_ON = "; what is finished is kept, and the same command goes on"
_NUMBER = re.compile(r"(?:os error|\[errno) (\d+)", re.IGNORECASE)
_TORCH = re.compile(r"iostream error|PytorchStreamWriter failed|inline_container.*unexpected pos")


def explain(error: BaseException) -> str | None:
    """One line for a failure of the machine: what and where, and what to do; None for any other error."""
    for one in _chain(error):
        if isinstance(one, MemoryError):
            return SAID[errno.ENOMEM] + GOES_ON
        number = _number(one)
        if number in SAID:
            place = getattr(one, "filename2", None) or getattr(one, "filename", None)
            return f"{place or 'the store, the run folder or TMPDIR'}: {SAID[number]}{GOES_ON}"
    if any(_TORCH.search(str(one)) for one in _chain(error)):
        return f"torch could not write a checkpoint; is there room where the store is?{GOES_ON}"
    return None


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
