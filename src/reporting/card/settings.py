"""The hyper-parameters of a run as rows, read from its typed config."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from src.experiment.run import Run
from src.kernel.config import fingerprint
from src.reporting.card.markdown import literal, scrubbed

PARTS = ("method", "train", "sampling", "ranker", "estimator", "pairing", "data", "model", "hardware", "seed")
HIDDEN = ("source_version", "code_version")
"""Of keys, not of people."""
LONGEST = 160
"""Characters of a value."""


def rows(run: Run) -> list[tuple[str, str]]:
    """Key and value of all that changes results, both in Markdown."""
    found = [row for part in PARTS for row in _flat(part, fingerprint(getattr(run, part)))]
    return [(literal(key), literal(_shown(value))) for key, value in found]


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A class stands under the name of its part, its fields below it."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            if name not in HIDDEN:
                yield from _flat(key if name == "_target_" else f"{key}.{name}", item)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from _flat(f"{key}.{number}", item)
    else:
        yield key, value


def _shown(value: Any) -> str:
    text = scrubbed(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"
