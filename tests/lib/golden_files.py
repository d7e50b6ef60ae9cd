"""Golden files: `make golden` writes them anew; their diff is read like code."""

from __future__ import annotations

import json
import os
from typing import Any

from places import TESTS


def golden(name: str, value: Any) -> Any:
    """Return what the file holds; with GOLDEN=1, write `value` there before."""
    file = TESTS / "golden" / name
    if os.environ.get("GOLDEN"):
        file.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    return json.loads(file.read_text())
