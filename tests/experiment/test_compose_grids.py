"""Grids of a sweep: Hydra's language, every combination, mistakes in one line, and a thousand points."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any
from unittest import mock

import pytest
from stub_jobs import points_of
from tiny_run import ROOT, call, folders

from src import compose
from src.launcher import Point

# Grids -------------------------------------------------------------------------------------------------------------


def overrides_of(*words: str) -> list[list[str]]:
    return [
        [word for word in point.overrides if not word.startswith(("launcher", "store"))] for point in planned(*words)
    ]


def planned(*words: str) -> list[Point]:
    return points_of("-m", "launcher=slurm", *words)


@pytest.mark.full
@pytest.mark.parametrize(
    ("word", "points"),
    [
        ("seed=1,2", ["seed=1", "seed=2"]),
        ("seed=choice(1,2)", ["seed=1", "seed=2"]),
        ("seed=range(1,4)", ["seed=1", "seed=2", "seed=3"]),
        ("seed=range(1,10,4)", ["seed=1", "seed=5", "seed=9"]),
        ("method=glob(wpo*)", ["method=wpo", "method=wpo_clamped"]),
        ("method=glob(*,exclude=[wpo*,sppo*])", ["method=dpo", "method=ipo"]),
        ("seed=sort(3,1,2)", ["seed=1", "seed=2", "seed=3"]),
        ("only=[it1/pairs],base/policy", ["only=[it1/pairs]", "only=base/policy"]),
        ("name='a','b.c'", ["name='a'", "name='b.c'"]),
        ("seed=1", ["seed=1"]),
    ],
)
def test_grids_speak_hydras_language(word: str, points: list[str]) -> None:
    assert overrides_of(word) == [[point] for point in points]


def test_a_grid_is_every_combination_the_last_key_fastest() -> None:
    found = overrides_of("method.eta=1,2", "seed=0", "sampling.K=3,4")
    wanted = itertools.product(("1", "2"), ("3", "4"))
    assert found == [[f"method.eta={eta}", "seed=0", f"sampling.K={k}"] for eta, k in wanted]


def test_a_point_knows_the_words_of_its_command() -> None:
    (first, second) = planned("seed=1,2", "iter=1")
    assert first.command == second.command == ("-m", "launcher=slurm", "seed=1,2", "iter=1")


@pytest.mark.full
@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("method.etta=1,2", "method.etta: unknown key"),
        ("method.eta=1,x", "method.eta: "),
        ("method=sppo,nope", "no file nope.yaml in conf/method; there are"),
        ("seed=interval(0,1)", "does not support sweep type"),
        ("seed=1,2 --bogus", "--bogus"),
        ("seed=1,2 plan", "plan"),
        ("seed=1, seed=2", "seed=1,"),
        ("launcher=local,slurm", "launcher: "),
        ("hydra/launcher=nope", "nope"),
    ],
)
def test_a_mistake_in_a_grid_is_one_line(
    words: str, named: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("plan", "-m", *folders(tmp_path), *words.split()) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1 and named in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["--cfg", "job", "--resolve"]])
def test_what_hydra_only_shows_carries_nothing_out(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def carry_out(points: list[Point]) -> int:
        pytest.fail("carried out")

    with mock.patch.object(sys, "argv", ["src/main.py", *words]):
        assert call(*words) == 0
    assert len(capsys.readouterr().out.splitlines()) > 3
    assert compose._Command.points == []


def test_dash_m_may_stand_anywhere() -> None:
    found = points_of("iter=1", "launcher=slurm", "method.eta=1,2", "-m")
    assert [point.run.method.eta for point in found] == [1.0, 2.0]  # type: ignore[attr-defined]


# Size --------------------------------------------------------------------------------------------------------------

THOUSAND = """
import sys, time
sys.path[:0] = ["tests/lib", "tests"]
from stub_jobs import points_of
from src.slurm.arrays import Planner
from src.slurm.ledger import Ledger
from src.slurm.client import DEFAULT_LIMITS
from src.slurm.submit import Wish, plan
from src.sweep import Sweep
import tiny_run
moments = [time.monotonic()]
def lap():
    moments.append(time.monotonic())
    return round(moments[-1] - moments[-2], 2)
words = ["-m", f"store={sys.argv[1]}", "iter=3", "launcher=slurm", "launcher.parts=64"]
points = points_of(*words, f"method.eta={','.join(map(str, range(1, 41)))}",
                   f"train.lr={','.join(f'{i}e-6' for i in range(1, 26))}")
composed = lap()
sweep = Sweep(points)
tasks = sweep.tasks(64)
graph = lap()
planned = plan(sweep, Ledger.of(sweep.store.root), Wish(64, True), [], DEFAULT_LIMITS)
print(len(points), len(tasks), len(planned.arrays), sum(len(array.elements) for array in planned.arrays))
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024)
print(f"composed {composed} s, tasks {graph} s, arrays {lap()} s", file=sys.stderr)
"""


@pytest.mark.full
def test_a_thousand_points_of_three_iterations_in_64_parts_are_planned_in_a_gigabyte(tmp_path: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", THOUSAND, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    counts, memory = done.stdout.splitlines()[-2:]
    once, each = 5, 3 * 2 + 2 * 2 + 1  # setup, two evaluations, ranking, reference; of a point, but for its answers
    assert (
        counts == f"1000 {once + 1 + 1000 * (each + 2)} {once + 1 + each + 2 * 64} {once + 64 + 1000 * (each + 2 * 64)}"
    )
    assert int(memory) < 1024, done.stderr
