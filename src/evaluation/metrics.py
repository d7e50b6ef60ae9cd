"""`metrics.json`: the numbers of an artifact, which reports, cards, W&B and `compare` read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS = "metrics.json"


def write_metrics(out: Path, numbers: Mapping[str, float | None]) -> None:
    """None: not known. Raises ValueError, and writes nothing, where one is NaN or infinite."""
    (out / METRICS).write_text(as_json(numbers))


def as_json(numbers: Mapping[str, Any]) -> str:
    """Raises ValueError for NaN and infinity, which are no JSON."""
    return json.dumps(numbers, indent=1, allow_nan=False) + "\n"
