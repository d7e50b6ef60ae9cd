"""Runs that were asked for together can be found together later."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tiny_run import points_of

from src.experiment.point import Point
from src.experiment.run_folder import CONFIG
from src.experiment.selection import folder_of, folders, group_of, note_sweep
from src.experiment.selection import points_of as members
from src.kernel.config import UserError


def points(place: Path, *words: str) -> list[Point]:
    return points_of("-m", f"runs={place / 'runs'}", *words)


def test_a_sweep_is_found_by_the_name_of_its_grid_or_else_by_its_folder(tmp_path: Path) -> None:
    grids, runs = [points(tmp_path, "+sweep=eta", "method.eta=10,30"), points(tmp_path, "seed=1,2")], tmp_path / "runs"
    for sweep, name in zip(grids, ("eta", folder_of(grids[1]).name), strict=True):
        assert note_sweep(sweep) == str(runs / name), "as compare calls it"
        places = [point.folder for point in sweep]
        assert len(places) == 2 and folder_of(sweep).parent == runs
        assert members(f"{runs}/{name}") == members(str(folder_of(sweep))) == places
        assert {group_of(place) for place in places} == {name}
        note = json.loads((folder_of(sweep) / "points.json").read_text())
        assert (note["name"], note["command"]) == (name, list(sweep[0].command))
    assert note_sweep(grids[0][:1]) is None
    assert members(f"{runs}/lr") == [] == members(f"{tmp_path}/none/eta") and group_of(runs / "another") is None


def test_sweeps_of_one_name_are_compared_together_and_a_point_belongs_to_the_last(tmp_path: Path) -> None:
    grids = [points(tmp_path, "+sweep=eta", f"method.eta={values}") for values in ("10,30", "30,100")]
    grids.append(points(tmp_path, "method.eta=10,30,100"))
    for number, sweep in enumerate(grids):
        note_sweep(sweep)
        os.utime(folder_of(sweep) / "points.json", (number, number))
    assert members(f"{tmp_path}/runs/eta") == [point.folder for point in grids[2]]
    assert group_of(grids[0][0].folder) == folder_of(grids[2]).name
    note_sweep(grids[0])
    assert group_of(grids[0][0].folder) == "eta"


def test_a_damaged_note_is_left_out(tmp_path: Path) -> None:
    sweep = points(tmp_path, "+sweep=eta", "method.eta=10,30")
    note_sweep(sweep)
    for number, content in enumerate(("", "{", "[]", '{"name": "eta"}', '{"name": "eta", "points": [{"folder": 1}]}')):
        (tmp_path / "runs" / f"sweep-{number}").mkdir()
        (tmp_path / "runs" / f"sweep-{number}" / "points.json").write_text(content)
    assert group_of(sweep[0].folder) == "eta" and len(members(f"{tmp_path}/runs/eta")) == 2


def test_a_run_is_found_by_its_name_and_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (run := Path("runs/mine")).mkdir(parents=True)
    (run / CONFIG).touch()
    assert folders("mine") == folders("runs/mine") == folders("runs/*,mine") == [run]
    with pytest.raises(UserError, match=r"^runs: 'yours' names no run folder .*; below runs there are mine$"):
        folders("yours")
