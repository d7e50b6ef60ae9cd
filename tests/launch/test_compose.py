"""The language of grids, and what a point knows of its words."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tiny_run import call, folders, points_of, typed


def grid(*words: str) -> list[list[str]]:
    return [[word for word in point.overrides if not word.startswith("launcher")] for point in points_of("-m", *words)]


def test_grids_speak_hydras_language_and_are_every_combination() -> None:
    """The last key is the fastest."""
    for word, points in {
        "seed=choice(1,2)": ["seed=1", "seed=2"],
        "seed=range(1,10,4)": ["seed=1", "seed=5", "seed=9"],
        "method=glob(*,exclude=[wpo*,sppo*])": ["method=dpo", "method=ipo"],
        "only=[it1/pairs],base/policy": ["only=[it1/pairs]", "only=base/policy"],
    }.items():
        assert grid(word) == [[point] for point in points], word
    wanted = itertools.product(("1", "2"), ("3", "4"))
    found = grid("method.eta=1,2", "seed=0", "sampling.K=3,4")
    assert found == [[f"method.eta={eta}", "seed=0", f"sampling.K={k}"] for eta, k in wanted]


def test_a_grid_of_the_house_needs_no_flag_and_the_words_of_one_point_are_that_point() -> None:
    points = points_of("+sweep=eta", "iter=1")
    assert [point.run.method.eta for point in points] == [10, 30, 100, 300, 1000, 3000]  # type: ignore[attr-defined]
    assert points[1].run == typed("iter=1", "method.eta=30")
    (again,) = points_of(*points[1].overrides)
    assert again.run == points[1].run


def test_a_point_knows_the_words_of_its_command_and_dash_m_may_stand_anywhere() -> None:
    found = points_of(*(words := ("iter=1", "-m", "method.eta=1,2")))
    assert [point.run.method.eta for point in found] == [1.0, 2.0]  # type: ignore[attr-defined]
    assert [point.command for point in found] == [words] * 2


def test_a_mistake_in_a_grid_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, named in {
        "method.etta=1,2": "method.etta: unknown key; did you mean method.eta?",
        "method.eta=1,x": "method.eta: ",
        "seed=interval(0,1)": "a grid wants the values themselves",
        "seed=1, seed=2": "seed=1,",
        "+sweep=nope": "there are estimator, eta",
        "launcher=local,slurm": "launcher: ",
        "hydra/sweeper=optuna": "hydra/sweeper=optuna: Hydra composes",
        "name=mine method.eta=1,2": "name: points of the sweep share",
        "iter=1,0": "iter: ",
    }.items():
        assert call("plan", "-m", *folders(tmp_path), *words.split()) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: ") and shown.count("\n") == 1 and named in shown, words
    assert list(tmp_path.iterdir()) == []


def test_what_hydra_only_shows_carries_nothing_out(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["--cfg", "job"], ["--cfg", "job", "--resolve"]):
        assert call(*words) == 0
        assert len(capsys.readouterr().out.splitlines()) > 3
