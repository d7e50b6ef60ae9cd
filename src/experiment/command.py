"""The command that makes a run again: what of a point's words says which run it is, and not how it was started."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

STARTED = re.compile(r"[+~]*(launcher[.=]|slurm@|(only|part)=)")
"""Words that say who starts the stages, and which of them."""


def command(overrides: Sequence[str]) -> str:
    """Return the command as typed in a shell. It makes the same artifacts anywhere, whoever started the run."""
    return shlex.join(["python", "-m", "src.main", *(word for word in overrides if not STARTED.match(word))])
