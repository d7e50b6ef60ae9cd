"""Which folders `runs=` means, and what `compare` says to words it cannot use.

Run: python -m pytest -q tests/test_compare_select.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_sweep import Made, grid, write

from src.compare.command import compare
from src.compare.select import folders, swept
from src.config import UserError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sweep")
    write(place, grid((10, 100), (1e-5,)), sweep="eta")
    write(place, [Made(eta=5.0)])
    (place / "runs" / ".hidden").mkdir()
    (place / "runs" / ".hidden" / "config.yaml").write_text("{}")
    (place / "runs" / "notes").mkdir()
    return place


def names(found: list[Path]) -> list[str]:
    return [path.name for path in found]


def test_a_glob_means_run_folders_and_nothing_else_that_lies_there(place: Path) -> None:
    found = folders(f"{place}/runs/*")
    assert len(found) == 3 and names(found) == sorted(names(found))
    assert all((folder / "config.yaml").is_file() for folder in found)


def test_a_folder_and_several_by_commas_come_in_their_order_and_once(place: Path) -> None:
    first, second, third = folders(f"{place}/runs/*")
    assert folders(str(second)) == [second]
    assert folders(f"{third},{first},{place}/runs/../runs/{third.name}") == [third, first]


def test_the_name_of_a_sweep_means_its_points_here_and_elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(folders(f"{place}/runs/eta")) == 2
    monkeypatch.chdir(place)
    assert names(folders("eta")) == names(folders(f"{place}/runs/eta"))
    assert swept("eta") == "eta" and swept("runs/*") is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nope", "below runs there are the sweeps eta and the runs tiny-"),
        ("runs", "those below it are runs/*"),
        (",", "nothing"),
    ],
)
def test_what_names_nothing_is_told_with_what_there_is(
    value: str, said: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match=f"^runs: .*{said.replace('*', '[*]')}"):
        folders(value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run=x"], "run=x: no word of compare; it takes runs=…"),
        (["runs"], "runs: no word of compare"),
        (["out=x"], "runs: missing"),
        (["runs=a", "runs=b"], "runs: given twice"),
    ],
)
def test_words_that_compare_does_not_know_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        compare(words)
