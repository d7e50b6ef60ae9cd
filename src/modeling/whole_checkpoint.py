"""Is a published checkpoint whole? Looked at where it lies, before it becomes an artifact.

Of weights only the heads are read: whether the bytes are those that were published is for who fetched them to say.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.kernel.config import UserError

INDEX = ".safetensors.index.json"
AGAIN = "fetch it again"
_LENGTH = 8
"""Bytes that say how long the head of a safetensors file is."""


def refuse_broken(files: Sequence[Path]) -> None:
    """Raises UserError for JSON that is none, weights that are cut off, and for what is not there."""
    weights = [file for file in files if file.suffix == ".safetensors"]
    if weights and not any(file.name == "config.json" for file in files):
        raise UserError(f"{weights[0].parent}: no config.json beside the weights; bring the whole model")
    for file in files:
        if file.suffix == ".json":
            found = _object(file)
            if file.name.endswith(INDEX):
                _refuse_missing_shards(file, found, {other.name for other in files})
        elif file.suffix == ".safetensors":
            _refuse_cut_off(file)


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: no JSON ({error}); {AGAIN}") from None
    if not isinstance(found, dict) and file.name.endswith(("config.json", INDEX)):
        raise UserError(f"{file}: a {type(found).__name__}, not a JSON object; {AGAIN}")
    return found


def _refuse_missing_shards(file: Path, index: dict[str, Any], there: set[str]) -> None:
    named = index.get("weight_map")
    missing = sorted({str(shard) for shard in named.values()} - there) if isinstance(named, dict) else []
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{file}: names {missing[0]}{more}, which is not there; {AGAIN}")


def _refuse_cut_off(file: Path) -> None:
    """The head says where the last weight ends, and so how long the file is."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(_LENGTH))
            if length > size - _LENGTH:
                raise ValueError
            head = json.loads(opened.read(length))
        ends = [found["data_offsets"][1] for name, found in head.items() if name != "__metadata__"]
        whole = _LENGTH + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, struct.error):
        raise UserError(f"{file}: no safetensors file, or one that is cut off in its head; {AGAIN}") from None
    if size != whole:
        raise UserError(f"{file}: {size:,} bytes, and its head names {whole:,}; {AGAIN}")
