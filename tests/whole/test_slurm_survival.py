"""Jobs that SLURM warns, preempts, requeues or kills, or whose node is lost, end with the weights of a run that nobody
touched, bit for bit: on one machine the same steps give the same bits.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from debian import SLURM, lacking
from places import PYTHONPATH
from slurm_cluster import Cluster
from slurm_gate import LEASE, alive
from slurm_runs import REQUEUED, Place, Prepared, slurm_words
from tiny_run import ROOT

from src.kernel.artifact import WORK
from src.training.checkpoints import STOP

IGNORED = "ignore:.*gradient_checkpointing:FutureWarning"
pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800), pytest.mark.filterwarnings(IGNORED)]

Capture = pytest.CaptureFixture[str]
TRAIN, LAST = "it1-training", ("it1-evaluation", "report")
TWO = ("hardware.devices.count=2", "+deepspeed@hardware.devices.deepspeed=zero2", "train.batch_pairs=2")
RESOLVE = """#!/usr/bin/env bash
# The names of the cluster's nodes mean nothing to anybody else.
[ "$1 $2" = "show hostnames" ] && exec printf '127.0.0.1\\n127.0.0.1\\n'
exec {scontrol} "$@"
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """One of a test's own, which may kill its daemons. It starts jobs again soon, and they find the tests."""
    if reason := lacking(SLURM):
        pytest.skip(reason)
    with Cluster(requeue_wait=10, kill_wait=5) as own:
        for key, value in {**own.env, "PYTHONPATH": PYTHONPATH}.items():
            monkeypatch.setenv(key, value)
        yield own


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs do not wait for minutes for an owner that gives no sign of life."""
    monkeypatch.setenv(LEASE, "5")


@pytest.fixture(scope="module")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        return Prepared.of(llama, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def place(whole: Prepared, cluster: Cluster, tmp_path: Path) -> Place:
    """Its training is held."""
    found = whole.place(cluster, tmp_path / "place", *slurm_words("launcher.site.partition=low"))
    found.gate.close()
    return found


def check(place: Place, whole: Prepared) -> None:
    """The run is made, and as if nothing had happened."""
    place.until_state(place.job("report"), "COMPLETED")
    assert place.weights() == whole.weights(place.cluster) and place.whole()


def test_killed_it_fails_and_retry_goes_on(place: Place, whole: Prepared, capsys: Capture) -> None:
    """First the process, then the batch shell around the next one. Jobs of what is done are not submitted again."""
    assert place.run() == 0
    assert list(place.jobs()) == [TRAIN, *LAST]
    for number in (1, 2):
        pid = place.until_held()
        os.kill(pid if number == 1 else psutil.Process(pid).ppid(), signal.SIGKILL)
        place.until_state(place.job(TRAIN), "FAILED")
        for name in LAST:
            place.until_state(place.job(name), "CANCELLED")
        capsys.readouterr()
        assert place.run("status") == 1 and "it1 training" in capsys.readouterr().out
        if number == 1:
            place.gate.close()
        assert place.run("retry") == 0
        assert {name: len(jobs) for name, jobs in place.jobs().items()} == dict.fromkeys((TRAIN, *LAST), number + 1)
    assert place.run("retry") == 0 and place.run() == 0, "nothing is left to submit"
    assert len(place.jobs()[TRAIN]) == 3
    place.gate.open()  # where no cgroup ends what the shell has left, that may still hold its turn
    place.until("the one without a shell has ended", lambda: not alive(pid))
    check(place, whole)


def test_warned_requeued_and_preempted_it_goes_on(place: Place, whole: Prepared) -> None:
    """One job, three times."""
    assert place.run() == 0
    job, cluster = place.job(TRAIN), place.cluster
    for end in (("scancel", "--signal=USR1", "--batch", job), ("scontrol", "requeue", job)):
        pid = place.until_held()
        place.gate.close()
        cluster.run(*end)
        place.until_gone(pid)
    pid = place.until_held()
    node = place.shown(job)["NodeList"]
    high = cluster.sbatch("--partition=high", f"--nodelist={node}", "--cpus-per-task=4", "--wrap", "true")
    place.until_gone(pid)
    place.until_state(high, "COMPLETED")
    place.until_state(job, "COMPLETED")
    assert REQUEUED.findall(place.log(TRAIN)) == [job, job], "as its handler of SIGUSR1 says, twice"
    assert int(place.shown(job)["Restarts"]) >= 3
    check(place, whole)


def test_in_one_allocation_it_goes_on(whole: Prepared, cluster: Cluster, tmp_path: Path) -> None:
    """slurm/run.sbatch, from the beginning."""
    place = whole.place(cluster, tmp_path / "place", begun=False)
    place.gate.close()
    out = place.folder / "run.out"
    words = ("--time=20", "--mem=1G", f"--chdir={ROOT}", f"--output={out}", str(ROOT / "slurm/run.sbatch"))
    job = cluster.sbatch(*words, *place.words)
    pid = place.until_held()
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    place.until_gone(pid)
    place.until_state(job, "COMPLETED")
    assert REQUEUED.findall(out.read_text()) == [job]
    assert place.weights() == whole.weights(cluster) and place.whole()


def test_a_lost_node_costs_a_restart_and_an_orphan_that_wakes_up_spoils_nothing(
    whole: Prepared, cluster: Cluster, tmp_path: Path, impatient: None
) -> None:
    """The orphan is on a node that SLURM takes for lost: another start takes over, and then the two work at once."""
    for orphan in (False, True):
        place = whole.place(cluster, tmp_path / f"orphan_{orphan}", *slurm_words())
        place.gate.close()
        assert place.run() == 0
        job = place.job(TRAIN)
        first = place.until_held()
        node = place.shown(job)["NodeList"]
        place.gate.close()
        training = psutil.Process(first)
        if orphan:
            training.suspend()
        else:
            for process in (*[parent for parent in training.parents() if parent.name() == "slurmstepd"], training):
                process.kill()
        cluster.kill(node)
        cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
        pid = place.until_held(but=first)
        assert place.shown(job)["NodeList"] != node and place.shown(job)["Restarts"] == "1"
        if orphan:
            assert f"no sign of life of process {first}" in place.log(TRAIN)
            place.gate.open(first)
            training.resume()
            place.until("the orphan ends", lambda first=first: not alive(first))
            assert "a later attempt has taken over; this one ends" in place.log(TRAIN)
            assert alive(pid) and cluster.jobs()[job] == "RUNNING"
        place.gate.open()
        cluster.restart(node)
        check(place, whole)


def test_a_warning_while_the_controller_is_away_is_no_failure(place: Place, whole: Prepared) -> None:
    """The job wants to go back into the queue, and nobody hears it yet."""
    assert place.run() == 0
    job = place.job(TRAIN)
    pid = place.until_held()
    place.cluster.settle()
    place.cluster.kill("slurmctld")
    try:
        os.kill(psutil.Process(pid).ppid(), signal.SIGUSR1)  # the batch shell
        asked = "goes back into the queue\n"
        place.until("scontrol complains", lambda: "\n" in place.log(TRAIN).partition(asked)[2])
    finally:
        place.cluster.restart("slurmctld")
    place.until_state(job, "COMPLETED", "FAILED")
    assert place.shown(job)["Restarts"] == "1"
    check(place, whole)


def test_all_processes_save_together_and_go_on(
    llama: Path, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one node, and on two."""
    (bin_ := tmp_path / "bin").mkdir()
    (bin_ / "scontrol").write_text(RESOLVE.format(scontrol=shutil.which("scontrol")))
    (bin_ / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    whole = Prepared.of(llama, tmp_path / "whole", *TWO)
    for nodes in (1, 2):
        place = whole.place(cluster, tmp_path / f"nodes{nodes}", *slurm_words())
        place.words.append(f"hardware.devices.nodes={nodes}")
        place.gate.close()
        assert place.run() == 0
        job = place.job(TRAIN)
        pid = place.until_held()
        assert place.shown(job)["NumNodes"] == str(nodes)
        cluster.run("scancel", "--signal=USR1", "--batch", job)
        stops = f"store/policy/*.partial-*/{WORK}/{STOP}"
        place.until("they are told", lambda place=place, stops=stops: list(place.folder.glob(stops)))
        place.gate.open(pid)
        place.until_state(job, "COMPLETED")
        assert REQUEUED.findall(place.log(TRAIN)) == [job] and place.shown(job)["Restarts"] == "1"
        check(place, whole)
