"""What a folder says it is: a store, and how its files lie."""

from __future__ import annotations

import json
from pathlib import Path

from src.kernel.attempts import FOLDER
from src.kernel.config import UserError
from src.kernel.disk import make_folder, sync, write_atomic

MARK = ".store.json"
LAYOUT = 1
"""Raised when code that reads stores of the old one would take it for something else."""


def check_store(root: Path) -> None:
    """Raises UserError where the folder holds other files, or a store that other code has laid out."""
    check_layout(root)
    if root.is_dir() and not (root / MARK).exists():  # a copy may have left it out
        strange = sorted(path.name for path in root.iterdir() if not path.name.startswith(".") and not _is_kind(path))
        if strange:
            raise UserError(f"store: {root} holds {strange[0]} and is no store; choose an empty folder, or a new one")


def _is_kind(path: Path) -> bool:
    """Whether it could hold artifacts of one kind: nothing but folders named as theirs."""
    return path.is_dir() and all(FOLDER.fullmatch(found.name) for found in path.iterdir())


def check_layout(root: Path) -> None:
    """Raises UserError where other code has laid it out."""
    mark = root / MARK
    try:
        found = json.loads(mark.read_bytes())["layout"]
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        told = json.dumps({"layout": LAYOUT})
        raise UserError(f"{mark}: cannot be read; if this code made the store, write {told} there") from None
    if found != LAYOUT:
        raise UserError(
            f"store: {root} is of layout {found}, and this code reads layout {LAYOUT}; "
            "take the code that made it, or another folder"
        )


def mark_store(root: Path) -> None:
    """Say so, before the first artifact."""
    if not (root / MARK).exists():
        make_folder(root)
        write_atomic(root / MARK, json.dumps({"layout": LAYOUT}).encode() + b"\n")
        sync(root)
