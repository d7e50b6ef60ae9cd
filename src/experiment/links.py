"""A run folder's links to its artifacts: `<run>/artifacts/it2/pairs` leads into the store."""

from __future__ import annotations

import os
from pathlib import Path

from src.kernel.artifact import Node, place_of
from src.kernel.store import Store

LINKS = "artifacts"


def _target(folder: Path, node: Node, store: Store) -> str:
    return os.path.relpath(store.path(node).resolve(), (folder / LINKS / node.name).parent.resolve())


def link(folder: Path, node: Node, store: Store) -> None:
    """`<run>/artifacts/it2/pairs` -> the artifact in the store."""
    place = folder / LINKS / node.name
    if not place.is_symlink():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(_target(folder, node, store))


def drop_stale_links(nodes: list[Node], store: Store, folder: Path) -> bool:
    """Remove links of another experiment that had this folder; True when there were any.

    Where a link of this plan leads elsewhere, those of iterations beyond the plan belong to the other one too. Those of
    a benchmark with other settings are replaced alone.
    """
    wanted = {folder / LINKS / node.name: _target(folder, node, store) for node in nodes}
    present = [place for place in (folder / LINKS).rglob("*") if place.is_symlink()]
    other = [place for place in present if os.readlink(place) != wanted.get(place, os.readlink(place))]
    if all(place_of(str(place.relative_to(folder / LINKS))).benchmark for place in other):
        for place in other:
            place.unlink()
        return False
    for place in present:
        if os.readlink(place) != wanted.get(place):
            place.unlink()
    return True
