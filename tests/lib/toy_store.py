"""A store of three artifacts, two of which a run uses."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_stages import Copy

from src.experiment.run_folder import link
from src.kernel.artifact import Node
from src.kernel.store import Store

CHAIN = [Node("it1/a", Copy(text="x" * 1_500_000)), Node("it1/b", Copy(text="b")), Node("it1/c", Copy(text="c"))]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three artifacts; a run folder links to the last two."""
    store = Store(tmp_path / "store")
    for node in CHAIN:
        store.make(node)
    for node in CHAIN[1:]:
        link(tmp_path / "runs" / "mine", node, store)
    return store


def tree(place: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in place.rglob("*"))
