"""Which folders `runs=` means, and what `compare` says to words it cannot use."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from made_up_sweep import Made, grid, write

from src.compare.command import compare
from src.compare.gather import sort_out
from src.compare.select import folders, identity, not_begun, swept
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


def test_points_that_have_not_begun_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = write(tmp_path, grid((1, 10, 100, 1000), (1e-5,)), sweep="eta")
    monkeypatch.chdir(tmp_path)
    assert not_begun("eta") == [] == not_begun("runs/*")
    shutil.rmtree(rest.pop())
    assert not_begun(f"{tmp_path}/runs/eta") == ["1 of 4 points of the sweep eta has not begun."]
    for folder in rest:
        (folder / "config.yaml").unlink()
    assert not_begun("eta") == ["3 of 4 points of the sweep eta have not begun."] and names(folders("eta")) == [
        first.name
    ]
    write(tmp_path, [Made(eta=5.0), Made(eta=6.0)], sweep="lr")
    assert not_begun("eta,lr") == not_begun("eta") and len(folders("eta,lr")) == 3


@pytest.mark.full
def test_points_of_a_sweep_that_have_not_begun_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in write(tmp_path, grid((1, 10, 100, 1000), (1e-5,)), sweep="eta")[1:]:
        shutil.rmtree(folder)
    assert compare([f"runs={tmp_path}/runs/eta"]) == 0
    out = tmp_path / "runs/compare-eta"
    for text in (capsys.readouterr().out, (out / "index.html").read_text(), (out / "compare.md").read_text()):
        assert "3 of 4 points of the sweep eta have not begun." in text


def test_of_a_sweep_without_a_begun_point_is_said_that_it_is_known(tmp_path: Path) -> None:
    for folder in write(tmp_path, grid((1, 10), (1e-5,)), sweep="eta"):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="^runs: eta is a sweep of 2 points, and none of them has begun; "):
        compare([f"runs={tmp_path}/runs/eta"])


def test_a_run_may_be_called_as_the_notes_of_sweeps_are(tmp_path: Path) -> None:
    write(tmp_path, grid((1, 10), (1e-5,)), sweep="eta")
    (folder,) = write(tmp_path, [Made(eta=5.0)])
    os.rename(folder, folder.with_name("sweep-lr"))
    assert "sweep-lr" in names(folders(f"{tmp_path}/runs/*")) and len(folders(f"{tmp_path}/runs/*")) == 3
    assert names(folders(f"{tmp_path}/runs/sweep-lr")) == ["sweep-lr"]


def test_a_comma_at_the_end_and_a_sweep_given_twice_are_that_sweep(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert [swept(value) for value in ("eta,", "eta,eta", "eta,runs/tiny-*")] == ["eta", "eta", None]


def test_an_identity_is_of_what_was_asked_for_and_where_and_not_of_how_much_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user in ("me", "you"):
        for folder in write(tmp_path / user, grid((1, 10), (1e-5,)), sweep="eta")[1:]:
            shutil.rmtree(folder)
    monkeypatch.chdir(tmp_path / "me")
    mine = {identity(value) for value in ("eta", "eta,", "runs/eta", f"{tmp_path}/me/runs/eta")}
    write(tmp_path / "me", grid((10,), (1e-5,)))
    assert len(folders("eta")) == 2 and mine == {identity("eta")}
    assert len(mine | {identity(value) for value in ("../you/runs/eta", "runs/*", "runs/tiny-*,eta")}) == 4
    assert identity("runs/tiny-*,eta") == identity("eta,runs/tiny-*")


@contextmanager
def somebody_else() -> Iterator[Path]:
    """A folder, as one sees it whom the modes of files bind."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)
        own = os.geteuid()
        try:
            yield Path(place)
        finally:
            os.seteuid(own)
            for folder, _, _ in os.walk(place):
                os.chmod(folder, 0o700)


def drop_rights() -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)


def test_a_folder_of_somebody_else_is_none_of_a_glob_and_is_told_of_a_sweep() -> None:
    with somebody_else() as place:
        first, second = write(place, grid((1, 10), (1e-5,)), sweep="eta")
        os.chmod(second, 0)
        drop_rights()
        assert folders(f"{place}/runs/*") == [first] == folders(f"{place}/runs/eta")
        (told,) = not_begun(f"{place}/runs/eta")
        assert told == "1 of 2 points of the sweep eta has a folder that may not be looked into."


@pytest.mark.parametrize("name", ["config.yaml", "command.txt", "artifacts", "artifacts/it1", "artifacts/it1/policy",
                                  "artifacts/it2/evaluation/metrics.json"])  # fmt: skip
def test_what_may_not_be_read_of_a_run_is_damage(name: str) -> None:
    with somebody_else() as place:
        (folder,) = write(place, [Made()])
        os.chmod((folder / name).resolve(), 0)
        drop_rights()
        _, (damaged,) = sort_out([folder])
        assert f"/{name}" in damaged.reason and "ermission denied" in damaged.reason


LONG = "x" * 300
"""Longer than a name of a file may be."""


@pytest.mark.parametrize("value", [LONG, f"{LONG}/eta", ",".join(["runs/none"] * 600), "x" * 5000])
def test_words_longer_than_a_path_may_be_are_names_of_nothing(
    value: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match="^runs: .* names no run folder and no sweep") as caught:
        folders(value)
    assert len(str(caught.value)) < 400


def test_a_list_longer_than_a_path_may_be_is_a_list(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert len(folders(",".join([*["eta"] * 1500, "runs/tiny-*"]))) == 3 and not_begun(",".join(["eta"] * 1500)) == []


@pytest.mark.full
def test_the_current_folder_is_filled_where_it_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, grid((1, 10), (1e-5,)), sweep="eta")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    was = here.stat().st_ino
    for _ in range(2):
        assert compare(["runs=../runs/eta", "out=."]) == 0
        assert here.stat().st_ino == was, "a shell in it stays in it"
        assert {"index.html", "plots"} <= {path.name for path in here.iterdir()} and len(list(here.iterdir())) == 6
        (here / "plots" / "old.png").write_bytes(b"")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.full
def test_out_is_longer_than_a_name_may_be(tmp_path: Path) -> None:
    write(tmp_path, [Made()], sweep="eta")
    for name in (LONG, "x" * 250):
        with pytest.raises(UserError, match=r"^out: .*File name too long"):
            compare([f"runs={tmp_path}/runs/eta", f"out={tmp_path}/{name}"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run=x"], "run=x: no word of compare; it takes runs=…"),
        (["runs"], r"runs: needs a value \(runs=…\)"),
        (["runs="], "runs: needs a value"),
        (["runs=eta", "title="], r"title: needs a value \(title=…\)"),
        (["=eta"], "=eta: no word of compare"),
        *((["runs=eta", f"report={place}"], f"report: {place} is no project") for place in ("/", "a/b/c", "a/", "/b")),
        (["out=x"], "runs: missing"),
        (["runs=a", "runs=b"], "runs: given twice"),
    ],
)
def test_words_that_compare_does_not_know_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        compare(words)
