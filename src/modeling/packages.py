"""Installed Python packages that carry model files: their code is never run."""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib import metadata
from pathlib import Path

from src.kernel.config import UserError


def package_folder(package: str, key: str) -> Path:
    """Folder of an installed package, found without importing it. Raises UserError, naming the config's `key`, when it
    is not installed.
    """
    # Looking up a dotted name would import its parent.
    spec = None if "." in package else importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"{key}: no package {package} is installed; mend the name, or `make install` where it is right")
    return Path(spec.origin).parent


def package_version(package: str, key: str) -> str:
    """`name version`; the version is empty for a package installed without metadata. Raises UserError as above."""
    package_folder(package, key)
    return _version(package)


@cache
def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} "
