"""`metrics.json`: the numbers of an artifact, which reports, cards, W&B and `compare` read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.kernel.config import UserError

METRICS = "metrics.json"
_MEND = "delete the folder, the next run makes it again"


def write_metrics(out: Path, numbers: Mapping[str, float | None]) -> None:
    """None: not known. Raises ValueError, and writes nothing, where one is NaN or infinite."""
    (out / METRICS).write_text(as_json(numbers))


def read_metrics(artifact: Path) -> dict[str, Any]:
    """Of a finished artifact. Raises UserError where it cannot be read."""
    path = artifact / METRICS
    try:
        numbers = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_MEND}") from None
    if not isinstance(numbers, dict):
        raise UserError(f"{path}: cannot be read (no JSON object); {_MEND}")
    return numbers


def as_json(numbers: Mapping[str, Any]) -> str:
    """Raises ValueError for NaN and infinity, which are no JSON."""
    return json.dumps(numbers, indent=1, allow_nan=False) + "\n"
