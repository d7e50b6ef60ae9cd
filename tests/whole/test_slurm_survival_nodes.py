"""Jobs whose node is lost, and jobs that are started twice, end with the weights of a run that nobody touched."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from places import PYTHONPATH
from slurm_cluster import Cluster, cluster  # noqa: F401
from slurm_gate import LEASE, LONGEST_WAIT, alive
from slurm_runs import Place, Prepared, prepared, slurm_words, starts

pytestmark = pytest.mark.full

TRAIN = "it1-training"
TURN_S = 5.0
"""Of an owner that gives no sign of life."""


@pytest.fixture(scope="module")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(llama, tmp_path_factory)


@pytest.fixture(autouse=True)
def jobs_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.setenv(LEASE, str(TURN_S))
    monkeypatch.setenv(LONGEST_WAIT, "1")


@pytest.fixture
def place(whole: Prepared, cluster: Cluster, tmp_path: Path) -> Iterator[Place]:  # noqa: F811
    """Its training is held; at the end all nodes are up."""
    found = whole.place(cluster, tmp_path, *slurm_words(site__partition="low"))
    found.gate.close()
    yield found
    found.close()
    cluster.scontrol("update", "PartitionName=low", "State=UP")


def lose(place: Place, node: str) -> None:
    """Its daemon is killed, and SLURM takes it for lost."""
    place.cluster.kill(node)
    place.cluster.scontrol("update", f"NodeName={node}", "State=DOWN", "Reason=lost")


def test_a_lost_node_costs_a_restart(place: Place, whole: Prepared) -> None:
    assert place.run() == 0
    job = place.job(TRAIN)
    pid = place.until_held()
    node = place.shown(job)["NodeList"]
    place.gate.close()
    training = psutil.Process(pid)
    for process in (training, *[parent for parent in training.parents() if parent.name() == "slurmstepd"]):
        process.kill()
    lose(place, node)
    place.until_held()
    assert place.shown(job)["NodeList"] != node and place.shown(job)["Restarts"] == "1"
    place.cluster.restart(node)
    place.gate.open()
    place.until_state(job, "COMPLETED")
    assert place.run("cancel") == 0
    assert place.weights() == whole.weights and place.whole()


def test_an_orphan_that_wakes_up_spoils_nothing(place: Place, whole: Prepared) -> None:
    """Its node is lost, it is not: the job is started again elsewhere and takes over, and then the two work at once."""
    assert place.run() == 0
    job = place.job(TRAIN)
    orphan = place.until_held()
    node = place.shown(job)["NodeList"]
    place.gate.close()
    os.kill(orphan, signal.SIGSTOP)
    lose(place, node)
    pid = place.until_held(but=orphan)
    assert f"no sign of life of process {orphan}" in place.log(TRAIN)
    place.gate.let_go(orphan)
    os.kill(orphan, signal.SIGCONT)
    place.until("the orphan ends", lambda: not alive(orphan))
    assert "a later attempt has taken over; this one ends" in place.log(TRAIN)
    assert alive(pid) and place.cluster.jobs()[job] == "RUNNING"
    place.gate.open()
    place.until_state(job, "COMPLETED")
    place.cluster.restart(node)
    assert place.run("cancel") == 0
    assert place.weights() == whole.weights and place.whole()


def test_an_orphan_that_goes_on_is_waited_for(place: Place, whole: Prepared) -> None:
    """The job is started again elsewhere, and finds the artifact that the orphan has made in the meantime."""
    assert place.run() == 0
    job = place.job(TRAIN)
    orphan = place.until_held()
    node = place.shown(job)["NodeList"]
    lose(place, node)
    place.until("the second start waits", lambda: f"process {orphan} on" in place.log(TRAIN))
    assert place.cluster.jobs()[job] == "RUNNING" and alive(orphan)
    place.gate.open()
    place.until_state(job, "COMPLETED")
    assert place.log(TRAIN).count("train: 4 pairs") == 1 and "taking over" not in place.log(TRAIN)
    place.cluster.restart(node)
    assert place.run("cancel") == 0
    assert place.weights() == whole.weights and place.whole()


def test_a_job_that_the_controller_has_forgotten_is_started_again(place: Place, whole: Prepared) -> None:
    """It is killed before it has saved that the job runs. Now and then SLURM takes the first start's end for both."""
    for _ in range(3):
        job = _forgotten(place)
        if place.until_state(job, "RUNNING", "FAILED") == "RUNNING":
            break
    pid = place.until_held()
    assert place.shown(job).get("Restarts", "0") == "0", "SLURM does not know that it was started before"
    assert place.log(TRAIN).count("train: expected peak") == 2, "but it was"
    place.gate.open()
    place.until_gone(pid)
    place.until_state(job, "COMPLETED")
    assert place.run("cancel") == 0
    assert place.weights() == whole.weights and place.whole()


def _forgotten(place: Place) -> str:
    place.gate.close()
    place.cluster.scontrol("update", "PartitionName=low", "State=DOWN")
    assert place.run() == 0
    job = place.job(TRAIN)
    place.cluster.settle()
    place.cluster.scontrol("update", "PartitionName=low", "State=UP")
    place.until_state(job, "RUNNING")
    place.until("the task runs", lambda: starts(place.folder / "store", job))
    place.cluster.kill("slurmctld")
    place.cluster.restart("slurmctld")
    place.gate.close()  # for the second start; the first may have come by
    return job


def test_a_warning_while_the_controller_is_away_is_no_failure(place: Place, whole: Prepared) -> None:
    """The job wants to go back into the queue, and nobody hears it yet."""
    assert place.run() == 0
    job = place.job(TRAIN)
    pid = place.until_held()
    place.cluster.settle()
    place.cluster.kill("slurmctld")
    try:
        os.kill(psutil.Process(pid).ppid(), signal.SIGUSR1)  # the batch shell
        end, asked = time.monotonic() + 60, "goes back into the queue\n"
        while "\n" not in place.log(TRAIN).partition(asked)[2]:  # scontrol complains
            assert time.monotonic() < end, place.logs()
            time.sleep(0.1)
    finally:
        place.cluster.restart("slurmctld")
    assert place.until_state(job, "COMPLETED", "FAILED") == "COMPLETED", place.logs()
    assert place.shown(job)["Restarts"] == "1"
    assert place.run("cancel") == 0
    assert place.weights() == whole.weights and place.whole()
