"""The command that makes a run again: what of a point's words says which run it is, and not how it was started."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import OmegaConf

from src.kernel.config import CONF

STARTED = re.compile(r"[+~]*(launcher[.=]|slurm@|(only|part|debug)=|hardware\.(generation|ranking)\.workers=)")
"""Who starts the stages, which of them, in how many processes, and what is shown of errors."""
SWEEP = re.compile(r"\+{1,2}sweep=(\w+)")


def command(overrides: Sequence[str]) -> str:
    """To be typed in a shell, anywhere; equal artifacts have equal keys."""
    return shlex.join(["python", "-m", "src.main", *lasting(overrides)])


def lasting(overrides: Sequence[str]) -> list[str]:
    """Of a point's overrides, those that say which run it is. What a sweep sets beside its grid is said in words."""
    words = [word for word in overrides if not STARTED.match(word)]
    sweeps = [found[1] for word in words if (found := SWEEP.fullmatch(word))]
    return [*(word for name in sweeps for word in _beside_grid(name)), *(w for w in words if not SWEEP.fullmatch(w))]


def _beside_grid(sweep: str) -> Iterator[str]:
    file = CONF / "sweep" / f"{sweep}.yaml"
    content: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.exists() else {}
    for key, value in content.items():
        if key not in ("hydra", "defaults"):
            yield from _said(key, value)


def _said(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _said(f"{key}.{name}", item)
    else:
        yield f"++{key}={json.dumps(value, ensure_ascii=False)}"
