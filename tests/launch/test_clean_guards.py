"""`clean` removes nothing where it cannot know what runs use, and never anything that is not this store's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import call, folders
from toy_store import CHAIN, store, tree  # noqa: F401

from src.experiment.run_folder import LINKS
from src.kernel.record import MARK
from src.kernel.store import Store

# ruff: noqa: F811


def links(place: Path) -> list[Path]:
    return [path for path in (place / "runs").glob(f"*/{LINKS}/**/*") if path.is_symlink()]


def move(path: Path, target: Path) -> None:
    """And leave a link in its place."""
    target.parent.mkdir(exist_ok=True)
    path.rename(target)
    path.symlink_to(target)


def of_another_store(place: Path) -> None:
    shutil.copytree(place / "store", place / "other")
    for link in links(place):
        target = place / "other" / link.resolve().relative_to((place / "store").resolve())
        link.unlink()
        link.symlink_to(target)


def to_the_store_itself(place: Path) -> None:
    for link in links(place):
        link.unlink()
    (place / "runs" / "mine" / LINKS / "all").symlink_to(place / "store")


def lost_links(place: Path, other: Path) -> None:
    shutil.rmtree(other / LINKS)
    (other / LINKS).symlink_to(place / "lost")


def reported(place: Path, other: Path) -> None:
    shutil.rmtree(other / LINKS)
    (other / "report.md").write_text("# A run")


def lost(place: Path, other: Path) -> None:
    shutil.rmtree(other)
    other.symlink_to(place / "lost")


def copied(place: Path, other: Path) -> None:
    shutil.rmtree(other)
    shutil.copytree(place / "runs" / "mine", other)


SPOILED: dict[str, Callable[[Path], object]] = {
    "no folder of runs": lambda place: shutil.rmtree(place / "runs"),
    "no runs in it": lambda place: shutil.rmtree(place / "runs" / "mine"),
    "a run without links": lambda place: shutil.rmtree(place / "runs" / "mine" / LINKS),
    "runs of another store": of_another_store,
    "a link that leads nowhere": lambda place: (links(place)[0].parent / "lost").symlink_to("../../../store/toy/0"),
    "a link to the store itself": to_the_store_itself,
    "runs that have moved": lambda place: move(place / "runs", place / "deeper" / "runs"),
    "a store without its mark": lambda place: (place / "store" / MARK).unlink(),
}
BESIDE: dict[str, Callable[[Path, Path], object]] = {
    "links that lead nowhere": lost_links,
    "a run that is lost": lost,
    "a run that was copied without its links": copied,
    "a report without links": reported,
}
"""Beside a good run."""


@pytest.mark.parametrize("case", [*SPOILED, *BESIDE])
def test_where_it_cannot_know_it_removes_nothing(
    case: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if case in SPOILED:
        SPOILED[case](tmp_path)
    else:
        shutil.copytree(tmp_path / "runs" / "mine", other := tmp_path / "runs" / "other", symlinks=True)
        BESIDE[case](tmp_path, other)
    before = tree(tmp_path)
    assert call("clean", *folders(tmp_path), "--yes") == 2
    error = capsys.readouterr().err
    assert error.startswith(("error: runs: ", "error: store: ")) and error.count("\n") == 1
    assert tree(tmp_path) == before


def test_what_another_wrote_into_the_store_stays(store: Store, tmp_path: Path) -> None:
    """A folder named like an artifact without our record, one with another's, and one behind a link."""
    unused, kind = store.path(CHAIN[0]), store.path(CHAIN[0]).parent
    outside = shutil.copytree(unused, tmp_path / "outside" / ("0" * 20))
    bare, strange, linked = (kind / (digit * 20) for digit in "abc")
    bare.mkdir()
    (bare / "thesis.tex").write_text("years of work")
    strange.mkdir()
    (strange / "record.json").write_text(json.dumps({"files": {}, "title": "a music collection"}))
    linked.symlink_to(outside)
    (photos := store.root / ".cells" / "holiday-photos").mkdir(parents=True)
    deeper = tmp_path / "runs" / "group" / "theirs" / LINKS / "a"
    deeper.parent.mkdir(parents=True)
    deeper.symlink_to(store.path(CHAIN[2]))
    (tmp_path / "runs" / "mine" / LINKS / CHAIN[2].name).unlink()
    assert call("clean", *folders(tmp_path), "--yes") == 0
    assert not unused.exists(), "what no run uses goes"
    assert photos.exists() and store.has(CHAIN[2]), "a run folder may lie deeper"
    assert (bare / "thesis.tex").exists() and (strange / "record.json").exists() and (linked / "record.json").exists()
