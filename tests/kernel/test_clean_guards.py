"""`clean` removes nothing where it cannot know what runs use, and never anything that is not this store's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_run import call, folders
from toy_store import CHAIN, store, tree  # noqa: F401

from src.experiment.links import LINKS
from src.kernel.record import MARK
from src.kernel.store import Store

# ruff: noqa: F811


def links(place: Path) -> list[Path]:
    return [path for path in (place / "runs").glob(f"*/{LINKS}/**/*") if path.is_symlink()]


def no_runs(place: Path) -> None:
    shutil.rmtree(place / "runs")


def empty_runs(place: Path) -> None:
    no_runs(place)
    (place / "runs").mkdir()


def folder_without_links(place: Path) -> None:
    empty_runs(place)
    (place / "runs" / "notes").mkdir()


def runs_of_another_store(place: Path) -> None:
    shutil.copytree(place / "store", place / "other")
    for link in links(place):
        target = place / "other" / link.resolve().relative_to((place / "store").resolve())
        link.unlink()
        link.symlink_to(target)


def one_dangling_link(place: Path) -> None:
    (links(place)[0].parent / "lost").symlink_to("../../../../store/toy/0123456789abcdef0123")


def moved_runs(place: Path) -> None:
    (place / "deeper").mkdir()
    (place / "runs").rename(place / "deeper" / "runs")
    (place / "runs").symlink_to(place / "deeper" / "runs")


def another_run(place: Path) -> Path:
    """Beside the good one."""
    other = place / "runs" / "other"
    shutil.copytree(place / "runs" / "mine", other, symlinks=True)
    return other


def lost_links_beside_a_good_run(place: Path) -> None:
    other = another_run(place)
    (other / LINKS).rename(place / "gone")
    (other / LINKS).symlink_to(place / "lost")


def a_lost_run_beside_a_good_one(place: Path) -> None:
    another_run(place).rename(place / "gone")
    (place / "runs" / "other").symlink_to(place / "lost")


def a_loop(place: Path) -> None:
    (place / "runs" / "other").symlink_to(place / "runs" / "other")


def a_copied_run(place: Path) -> None:
    shutil.copytree(place / "runs" / "mine", place / "runs" / "copy")


def a_report_without_links(place: Path) -> None:
    other = another_run(place)
    shutil.rmtree(other / LINKS)
    (other / "report.md").write_text("# A run")


def one_link_to_the_store_itself(place: Path) -> None:
    for link in links(place):
        link.unlink()
    (place / "runs" / "mine" / LINKS / "all").symlink_to(place / "store")


def no_mark(place: Path) -> None:
    (place / "store" / MARK).unlink(missing_ok=True)


@pytest.mark.parametrize(
    "spoil",
    [
        *(no_runs, empty_runs, folder_without_links, runs_of_another_store, one_dangling_link, moved_runs, no_mark),
        *(lost_links_beside_a_good_run, a_lost_run_beside_a_good_one, a_loop, a_copied_run, a_report_without_links),
        one_link_to_the_store_itself,
    ],
)
def test_where_it_cannot_know_it_removes_nothing(
    spoil: object, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(tmp_path)  # type: ignore[operator]
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
