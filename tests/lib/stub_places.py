"""Places where sweeps are submitted to a real SLURM, and whether their jobs ran in order."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
from slurm_cluster import Cluster, cluster, install  # noqa: F401
from stub_jobs import Place, points_of, words_of
from toy_graph import needed_tasks

from src.sweep import Sweep

Capture = pytest.CaptureFixture[str]
GRID = ("-m", "iter=1", "method.eta=1,2,3")


@pytest.fixture
def place(cluster: Cluster, tmp_path: Path) -> Iterator[Place]:  # noqa: F811
    yield from placed(cluster, tmp_path)


def placed(own: Cluster, folder: Path) -> Iterator[Place]:
    found = Place(own, folder, sys.executable)
    yield found
    if left := found.alive():
        own.run("scancel", *sorted(left))
        found.wait()


@pytest.fixture
def small(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A cluster of its own, with settings of the test; where it holds few jobs it forgets those that have ended."""
    if reason := install():
        pytest.skip(reason)
    patient = slurm_cluster.CONFIGURATION  # with so many jobs at a time some take long to begin
    changes = {"BatchStartTimeout=2": "BatchStartTimeout=60", "MessageTimeout=5": "MessageTimeout=30"}
    changes |= {"MinJobAge=3600": "MinJobAge=2"} if "max_job_count" in request.param else {}
    for old, new in changes.items():
        assert old in patient
        patient = patient.replace(old, new)
    monkeypatch.setattr(slurm_cluster, "CONFIGURATION", patient)
    with Cluster(nodes=1, cpus=32, **request.param) as own:
        for key, value in own.env.items():
            monkeypatch.setenv(key, value)
        yield from placed(own, tmp_path)


def left_nothing(folder: Path) -> bool:
    return not (folder / "store").exists() and not (folder / "runs").exists()


def error_of(capsys: Capture) -> str:
    """One line."""
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error.removeprefix("error: ").strip()


def check_order(place: Place, *words: str) -> int:
    """Everything was made, and after what it needs; how many jobs there were."""
    ended = place.cluster.jobs()
    assert {job: state for job in place.elements() if (state := ended.get(job)) != "COMPLETED"} == {}
    sweep = Sweep(points_of(*place.in_order(words)))
    tasks = sweep.tasks(2)
    noted = place.noted()
    assert set(noted) == {(m, w) for t in tasks for w in words_of(t, sweep) for m in ("begins", "ends")}
    moment = {one: noted.index(one) for one in noted}  # SLURM may start a job again that was slow to begin
    for task, needs in needed_tasks(tasks).items():
        begin = min(moment["begins", own] for own in words_of(task, sweep))
        for need in needs:
            assert all(moment["ends", own] < begin for own in words_of(need, sweep)), (task.name, need.name)
    return len(moment) // 2
