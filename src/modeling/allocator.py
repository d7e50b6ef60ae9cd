"""Memory of CPU training: kept once it was touched."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_memory() -> None:
    """Let glibc keep freed memory for the next tensors instead of handing it back to the kernel.

    Activations come and go in large blocks; touching fresh pages costs a sixth of a step on virtual machines. Without
    effect on other C libraries.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26)):
            libc.mallopt(option, value)
