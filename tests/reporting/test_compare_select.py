"""Which folders `runs=` means, and what `compare` says to words it cannot use."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from made_up_sweep import Made, grid, write

from src.experiment.selection import folders, not_begun, swept
from src.kernel.config import UserError
from src.reporting.compare.command import compare


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two points, a run of its own, and folders that are no runs."""
    place = tmp_path_factory.mktemp("sweep")
    write(place, grid((10, 100), (1e-5,)), sweep="eta")
    write(place, [Made(eta=5.0)])
    (place / "runs" / ".hidden").mkdir()
    (place / "runs" / ".hidden" / "config.yaml").write_text("{}")
    (place / "runs" / "notes").mkdir()
    return place


def test_a_glob_folders_by_commas_and_the_name_of_a_sweep_mean_run_folders_each_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = folders(f"{place}/runs/*")
    assert folders(str(second)) == [second]
    assert folders(f"{third},{first},{place}/runs/../runs/{third.name}") == [third, first]
    monkeypatch.chdir(place)
    eta = [folder.name for folder in folders("eta")]
    assert len(eta) == 2 and eta == [folder.name for folder in folders(f"{place}/runs/eta")]
    assert len(folders(",".join([*["eta"] * 1500, "runs/tiny-*"]))) == 3
    assert swept("eta") == "eta" and swept("runs/*") is None


def test_a_word_that_names_nothing_is_answered_with_what_there_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for value, answer in {
        "nope": "there are eta, tiny-",
        ",": "names no run folder",
        "x" * 300: "names no run folder",
        ",".join(["runs/none"] * 600): "names no run folder",
    }.items():
        with pytest.raises(UserError, match=f"^runs: .*{answer}") as caught:
            folders(value)
        assert len(str(caught.value)) < 400


def test_points_that_have_not_begun_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = write(tmp_path, grid((1, 10, 100), (1e-5,)), sweep="eta")
    monkeypatch.chdir(tmp_path)
    assert not_begun("eta") == [] == not_begun("runs/*")
    shutil.rmtree(third)
    assert not_begun(f"{tmp_path}/runs/eta") == ["Of the sweep eta, 1 of 3 points are not begun."]
    (second / "config.yaml").unlink()
    assert not_begun("eta") == ["Of the sweep eta, 2 of 3 points are not begun."]
    assert [folder.name for folder in folders("eta")] == [first.name]


def test_words_that_compare_does_not_know_are_refused() -> None:
    for words, named in (("run=x", "run=x"), ("runs", "runs"), ("runs=", "runs="), ("runs=a title=", "title="),
                         ("=eta", "=eta"), ("out=x", "runs")):  # fmt: skip
        with pytest.raises(UserError, match=f"^{named}: "):
            compare(words.split())
