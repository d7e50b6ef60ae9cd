"""Installed Python packages that carry model files: their code is never run."""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib import metadata
from pathlib import Path

from src.config import UserError


def package_folder(package: str) -> Path:
    """Folder of an installed package, found without importing it. Raises UserError when it is not installed."""
    # Looking up a dotted name would import its parent.
    spec = None if "." in package else importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the package {package}, named in the config, is not installed; run `make install`")
    return Path(spec.origin).parent


@cache
def package_version(package: str) -> str:
    """`name version`; the version is empty for a package installed without metadata."""
    package_folder(package)
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} "
