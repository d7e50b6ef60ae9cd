"""Sweepers that want results before they propose more points: what they are told, and what is refused of them.

Hydra's own sweeper stands for them: it raises the error of a point that has failed, as Optuna's does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from tiny_run import call, folders, made_point, tiny, typed, typed_point

from src.experiment.point import Point
from src.kernel.config import UserError
from src.launch import compose
from src.launch.local import Local
from src.launch.slurm import launcher as slurm
from src.launch.slurm.client import NoCluster
from src.launch.verbs import OF_FOLDERS, VERBS

Capture = pytest.CaptureFixture[str]
RUN = functools.cache(typed)


@pytest.fixture(autouse=True)
def search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "GRIDS", ())


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[JobReturn]:
    """What the sweeper was told."""
    found: list[JobReturn] = []
    launched = compose.launched
    monkeypatch.setattr(compose, "launched", lambda *given: found.extend(launched(*given)) or found)
    return found


def swept(place: Path, *more: str) -> list[str]:
    return ["-m", *folders(place), f"hydra.sweep.dir={place / 'hydra'}", "seed=1,2,3", "iter=1", *more]


def carried_out(monkeypatch: pytest.MonkeyPatch, cls: type, failing: Callable[[str], str] = lambda _: "") -> list[str]:
    """What is done from now on, in order: begin or end, and the seed."""
    done: list[str] = []

    def note(moment: str, point: Point) -> None:
        done.append(f"{moment} {point.run.seed}")
        if said := failing(done[-1]):
            raise UserError(said)

    def launch(self: Any, points: Sequence[Point]) -> int:
        note("begin", *points)
        return 0

    def await_win(self: Any, point: Point) -> float:
        note("end", point)
        return point.run.seed / 10

    monkeypatch.setattr(cls, "launch", launch)
    monkeypatch.setattr(cls, "await_win", await_win)
    return done


# What is refused ---------------------------------------------------------------------------------------------------


def test_nothing_but_a_run_is_begun(tmp_path: Path, capsys: Capture) -> None:
    for verb in (verb for verb in VERBS if verb not in OF_FOLDERS):
        own = ["from=file.json"] if verb == "score" else []
        assert call(verb, *swept(tmp_path, "launcher=slurm"), *own) == 2, verb
        said = capsys.readouterr().err
        assert said.startswith("error: hydra/sweeper: GridSweeper ") and verb in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_points_of_several_batches_would_share_is_refused(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = carried_out(monkeypatch, Local)
    for words in (["name=foo"], ["push_to_hub=me/policy", "hydra.sweeper.max_batch_size=1"]):
        assert call(*swept(tmp_path, *words)) == 2, words
        said = capsys.readouterr().err
        assert said.startswith(f"error: {words[0].partition('=')[0]}: points of this sweep") and done == []
    assert call(*swept(tmp_path, "name=null")) == 0 and len(done) == 6


def test_a_sweep_without_its_flag_is_refused_in_an_allocation_too(capsys: Capture) -> None:
    """`sbatch slurm/run.sbatch +sweep=eta` would make its default point."""
    for launched in ([], ["launcher=allocation"], ["launcher=slurm"]):
        assert call("+sweep=eta", *launched) == 2
        assert capsys.readouterr().err == "error: +sweep=eta: a sweep wants -m too\n"


# What is done and told ---------------------------------------------------------------------------------------------


def test_a_point_s_command_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that submits the rest of it would else begin the search again."""
    found: list[Point] = []
    monkeypatch.setattr(slurm.Slurm, "await_win", lambda self, point: 0.5)
    monkeypatch.setattr(slurm.Slurm, "launch", lambda self, points: found.extend(points) or 0)
    words = ["launcher=slurm", "launcher.parts=2"]
    assert call(*swept(tmp_path, "+sweep=k", "sampling.K=3", *words)) == 0
    assert [point.run.seed for point in found] == [1, 2, 3]
    for point in found:
        assert point.overrides[-2:] == words and "+sweep=k" in point.overrides
        assert list(point.command) == [word for word in point.overrides if word != "+sweep=k"]
        assert typed(*point.command) == point.run


def test_a_point_that_fails_here_is_told_and_the_others_go_on(
    tmp_path: Path, told: list[JobReturn], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    done = carried_out(monkeypatch, Local, lambda what: "it diverged" if what == "begin 2" else "")
    assert call(*swept(tmp_path)) == 2
    assert done == ["begin 1", "end 1", "begin 2", "begin 3", "end 3"]
    assert [one.status == JobStatus.COMPLETED for one in told] == [True, False, True]
    assert [told[0].return_value, told[2].return_value] == [0.1, 0.3]
    assert capsys.readouterr().err == "error: it diverged\n"


def test_jobs_are_submitted_before_any_is_waited_for_but_for_those_that_a_full_queue_does_not_take(
    tmp_path: Path, told: list[JobReturn], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def swept_when(fails: Callable[[str], str], error: str = "") -> tuple[list[str], list[float]]:
        """What was done, and told."""
        told.clear()
        with monkeypatch.context() as patch:
            done = carried_out(patch, slurm.Slurm, fails)
            assert call(*swept(tmp_path, "launcher=slurm")) == (2 if error else 0)
        assert capsys.readouterr().err == error
        return done, [one._return_value for one in told if one.status == JobStatus.COMPLETED]

    done, wins = swept_when(lambda what: "seed=1: failed" if what == "end 1" else "", "error: seed=1: failed\n")
    assert done == ["begin 1", "begin 2", "begin 3", "end 1", "end 2", "end 3"] and wins == [0.2, 0.3]
    begun, said = ["begin 1", "begin 2", "end 1", "begin 2", "begin 3"], iter(["the queue is full"])
    once = swept_when(lambda what: next(said, "") if what == "begin 2" else "")
    assert once == ([*begun, "end 2", "end 3"], [0.1, 0.2, 0.3])
    always = swept_when(lambda what: "full" if what == "begin 2" else "", "error: full\n")
    assert always == ([*begun, "end 3"], [0.1, 0.3])


def test_a_run_without_its_evaluation_has_no_win_rate_to_tell(tmp_path: Path) -> None:
    run = typed(*tiny(tmp_path / "llama", tmp_path, "iter=2"))
    with pytest.raises(UserError, match="^it2/evaluation: not made"):
        made_point(run).win()


# Waiting for jobs --------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have passed, all of them slept."""
    now = [0.0]
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    monkeypatch.setattr(slurm.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Point, "win", lambda _: 0.7)
    return now


def waited(monkeypatch: pytest.MonkeyPatch, clock: list[float], *said: tuple[float, str]) -> float:
    """For a point of which SLURM says each of these until that second, the last one for ever."""
    point = typed_point("launcher=slurm", "seed=1")

    def state(_: Any) -> str:
        state = next((state for until, state in said if clock[0] < until), said[-1][1])
        if state == "silent":
            raise UserError("launcher: squeue has not answered within 120 s; try again")
        if state == "unreachable":
            raise NoCluster("launcher: squeue: Could not establish a configuration source")
        return state

    monkeypatch.setattr(slurm, "state_of", state)
    own: Any = point.launcher
    return own.await_win(point)


def test_silence_and_what_is_not_seen_yet_are_waited_out(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    for said in (
        [(0, "done")],
        [(590, "unreachable"), (600, "running"), (1190, "silent"), (0, "done")],
        [(30, "running"), (110, "failed"), (0, "done")],
        [(80, "left"), (100, "queued"), (180, "cancelled"), (0, "done")],
    ):
        clock[0] = 0.0
        assert waited(monkeypatch, clock, *said) == 0.7, said


def test_a_failure_that_stays_is_one_and_so_is_a_cluster_that_says_nothing_for_ten_minutes(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    cases = [(state, f"seed=1: {state}; `status` shows", 90, 100) for state in ("failed", "cancelled", "left")]
    cases += [(state, "^launcher: squeue", 600, 620) for state in ("silent", "unreachable")]
    for state, message, soonest, latest in cases:
        clock[0] = 0.0
        with pytest.raises(UserError, match=message):
            waited(monkeypatch, clock, (50, "running"), (0, state))
        assert soonest <= clock[0] - 50 <= latest, state
