"""sweeps/: each grid is what its head says."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from sweep_points import choice, head, plain, points_of, value
from tiny_run import ROOT, composed

from src.sweep import Sweep

pytestmark = pytest.mark.full

GRIDS = sorted((ROOT / "sweeps").glob("*.yaml"))
GIVEN = {"method.eta": "7.0", "train.lr": "7e-07", "sampling.K": "7", "estimator": "score", "method": "ipo"}
"""On the command line, for a key that a grid sweeps."""
COST = re.compile(
    r"# Cost: (\d+) trainings, (\d+) sets of answers \((\d+) were none shared\), (\d+) rankings \((\d+)\); "
    r"([\d.]+) hours \(([\d.]+)\) on 2 CPU cores\."
)

each_grid = pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)


def swept(file: Path) -> dict[str, list[str]]:
    """Key -> values."""
    params = yaml.safe_load(file.read_text())["hydra"]["sweeper"]["params"]
    return {key: values.split(",") for key, values in params.items()}


def commands(file: Path) -> list[list[str]]:
    """Words behind `python -m src.main` of the commands that the head shows."""
    shown = [line.removeprefix("#   ") for line in head(file) if line.startswith("#   python -m src.main ")]
    return [shlex.split(line, comments=True)[3:] for line in shown]


def test_there_are_the_grids_that_the_plan_of_the_house_names() -> None:
    assert {"eta", "lr", "k", "eta_lr_k", "method", "estimator"} <= {file.stem for file in GRIDS}


@each_grid
def test_a_grid_is_what_its_head_says(file: Path) -> None:
    package, first, *rest = head(file)
    count, keys = re.fullmatch(r"# (\d+) points: (.+)", first).groups()  # type: ignore[union-attr]
    grid = swept(file)
    assert package == "# @package _global_" and keys.split(", ") == list(grid)
    assert int(count) == math.prod(map(len, grid.values()))
    for name in ("Question", "Grid", "Command", "Cost"):
        assert sum(line.startswith(f"# {name}:") for line in rest) == 1, name
    assert commands(file)[0] == ["-m", f"+sweep={file.stem}"]
    assert all(words[:3] == ["plan", "-m", f"+sweep={file.stem}"] for words in commands(file)[1:])


def test_the_study_is_made_of_these_grids(tmp_path: Path) -> None:
    """Each sweep as the script words it, before any word is added."""
    text = (ROOT / "sweeps/study.sh").read_text()
    inner = re.search(r"^sweeps=\(\n(.*?)^\)", text, re.MULTILINE | re.DOTALL)
    given = re.search(r'"\+sweep=\$\{words\[@\]\}" (.*) "\$@"', text)
    assert inner and given
    counts = dict[str, int]()
    for line in inner[1].splitlines():
        name, *words = shlex.split(line)[0].split()
        counts[name] = len(points_of("-m", f"+sweep={name}", *words, *given[1].split(), f"store={tmp_path}"))
    assert counts == {"eta": 10, "lr": 8, "k": 8, "method": 10, "estimator": 4}


@each_grid
def test_every_point_builds_and_costs_what_the_head_says(file: Path, tmp_path: Path) -> None:
    """Of an empty store, with the rates of the hardware's table."""
    grid, points = swept(file), points_of("-m", f"+sweep={file.stem}", f"store={tmp_path}")
    seen = [tuple(value(point, key) for key in grid) for point in points]
    assert seen == [tuple(map(plain, values)) for values in itertools.product(*grid.values())]
    assert len({point.folder for point in points}) == len(points)
    rows = Sweep(points).rows()
    made = {job: _count(rows, job, lambda row: len(row.keys)) for job in ("training", "generation", "ranking")}
    apart = {job: _count(rows, job, lambda row: row.apart) for job in made}
    hours = [f"{sum(times) / 3600:.1f}" for times in ([r.shared_s for r in rows], [r.apart_s for r in rows])]
    (told,) = [COST.match(line) for line in head(file) if line.startswith("# Cost:")]
    assert told is not None
    assert [made["training"], made["generation"], apart["generation"], made["ranking"], apart["ranking"]] == [
        int(number) for number in told.groups()[:5]
    ]
    assert list(told.groups()[5:]) == hours and not any(row.unknown for row in rows)


def _count(rows: list[Any], job: str, of: Callable[[Any], int]) -> int:
    return sum(of(row) for row in rows if re.fullmatch(rf"it\d+ {job}", row.name))


@each_grid
def test_what_the_head_shows_for_published_systems_can_be_typed(file: Path) -> None:
    """With one value of each key that the words leave to the grid, for speed."""
    for words in commands(file)[1:]:
        given = {word.partition("=")[0] for word in words}
        rest = [f"{key}={values[0]}" for key, values in swept(file).items() if key not in given]
        values = [values for key, values in swept(file).items() if key in given]
        assert len(points_of(*words, *rest)) == math.prod(map(len, values)), words


@each_grid
def test_a_key_of_the_command_line_takes_the_place_of_the_grids(file: Path) -> None:
    """Of several keys all but the last are given."""
    *keys, last = swept(file)
    keys = keys or [last]
    points = points_of("-m", f"+sweep={file.stem}", *(f"{key}={GIVEN[key]}" for key in keys))
    left = swept(file)[last] if last not in keys else [GIVEN[last]]
    assert [value(point, last) for point in points] == [*map(plain, left)]
    assert all(value(point, key) == plain(GIVEN[key]) for point in points for key in keys)


@each_grid
def test_a_grid_sweeps_keys_that_there_are_and_its_default_is_in_it(file: Path) -> None:
    default = composed()
    for key, values in swept(file).items():
        found = OmegaConf.select(default, key)
        assert found is not None, key
        assert plain(choice(found)) in map(plain, values)
