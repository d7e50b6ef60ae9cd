"""Jobs that SLURM warns, preempts, requeues or kills end with the weights of a run that nobody touched, bit for bit.

Lost nodes and controllers are in test_slurm_survival_nodes.py, several processes in test_slurm_survival_processes.py,
submissions in test_slurm_survival_submission.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from places import PYTHONPATH
from slurm_cluster import Cluster, cluster  # noqa: F401
from slurm_gate import BROKEN, GENERATION, TRAINING, alive
from slurm_runs import REQUEUED, ROOT, Place, Prepared, prepared, slurm_words

pytestmark = pytest.mark.full

TRAIN, LAST = "it1-training", ("it1-evaluation", "report")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(llama, tmp_path_factory)


@pytest.fixture(scope="module", autouse=True)
def jobs_find_the_tests() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        yield


@pytest.fixture(scope="module")
def limited(
    whole: Prepared,
    cluster: Cluster,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    """A training that waits for the warning before its time is over; begun early, for that takes most of it.

    A minute would do where a start takes 20 s; where it takes more, the warning comes before there is anything to save.
    """
    words = slurm_words(minutes=2, warn_seconds="30")
    place = whole.place(cluster, tmp_path_factory.mktemp("limited"), *words)
    place.gate.close()
    assert place.run() == 0
    yield place
    place.close()


@pytest.fixture
def place(whole: Prepared, cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:  # noqa: F811
    found = whole.place(cluster, tmp_path, *slurm_words(site__partition="low"), **getattr(request, "param", {}))
    yield found
    found.close()


from_scratch = pytest.mark.parametrize("place", [{"begun": False}], indirect=True, ids=[""])


def test_killed_it_fails_and_retry_goes_on(limited: Place, place: Place, whole: Prepared, capsys: Capture) -> None:
    """First the process, then the batch shell around the next one. Jobs of what is done are not submitted again."""
    place.gate.close()
    assert place.run() == 0
    first = place.jobs()
    assert list(first) == [TRAIN, *LAST]
    _end(place, place.until_held())
    capsys.readouterr()
    assert place.run("status") == 1
    shown, said = "".join(capsys.readouterr().out.split()), place.log(TRAIN).replace("\r", "\n").split("\n")
    assert first[TRAIN][0] in shown and "".join([line for line in said if line.strip()][-1].split()) in shown

    place.gate.close()
    assert place.run("retry") == 0
    assert {name: len(jobs) for name, jobs in place.jobs().items()} == dict.fromkeys(first, 2)
    pid = place.until_held()
    _end(place, psutil.Process(pid).ppid())

    assert place.run("retry") == 0
    assert place.run("retry") == 0 and place.run() == 0, "nothing is left to submit"
    place.gate.open()  # where no cgroup ends what the shell has left, that may still hold its turn
    place.until_state(place.job(TRAIN), "COMPLETED")
    assert place.weights() == whole.weights
    assert place.run("cancel") == 0
    place.until_state(place.job("report"), "CANCELLED")
    assert place.run("retry") == 0
    assert {name: len(jobs) for name, jobs in place.jobs().items()} == {TRAIN: 3, **dict.fromkeys(LAST, 4)}
    assert place.run("cancel") == 0
    place.until("it has ended", lambda: not alive(pid))
    assert place.whole()


def _end(place: Place, pid: int) -> None:
    """Kill a process of the training; what waits for the job is cancelled."""
    os.kill(pid, signal.SIGKILL)
    place.until_state(place.job(TRAIN), "FAILED")
    for name in LAST:
        place.until_state(place.job(name), "CANCELLED")


def test_warned_requeued_and_preempted_it_goes_on(place: Place, whole: Prepared) -> None:
    """One job, three times."""
    place.gate.close()
    assert place.run() == 0
    job = place.job(TRAIN)
    pid = place.until_held()
    place.gate.close()
    place.cluster.run("scancel", "--signal=USR1", "--batch", job)
    place.until_gone(pid)
    pid = place.until_held()
    assert REQUEUED.findall(place.log(TRAIN)) == [job]
    place.gate.close()
    place.cluster.scontrol("requeue", job)
    place.until_gone(pid)
    pid = place.until_held()
    node = place.shown(job)["NodeList"]
    high = place.cluster.sbatch("--partition=high", f"--nodelist={node}", "--cpus-per-task=4", "--wrap", "true")
    place.until_gone(pid)
    place.until_state(high, "COMPLETED")
    place.until_state(job, "COMPLETED")
    assert REQUEUED.findall(place.log(TRAIN)) == [job, job], "as its handler of SIGUSR1 says, twice"
    assert place.shown(job)["Restarts"] == "3"
    assert place.weights() == whole.weights
    assert place.run("cancel") == 0
    assert place.whole()


@from_scratch
def test_a_generation_goes_on_and_a_broken_chain_is_mended(place: Place, whole: Prepared, capsys: Capture) -> None:
    """A whole run as jobs."""
    place.gate.close(GENERATION)
    place.gate.breaks(TRAINING)
    assert place.run() == 0
    before = place.jobs()
    place.until_held(GENERATION)
    other, last = before["it1-generation"]
    place.until_state(other, "COMPLETED")
    place.cluster.run("scancel", "--signal=USR1", "--batch", last)
    place.until_state(place.job(TRAIN), "FAILED")
    assert len(REQUEUED.findall(place.log("it1-generation"))) == 1
    for name in LAST:
        place.until_state(place.job(name), "CANCELLED")
    capsys.readouterr()
    assert place.run("status") == 1
    shown = " ".join(capsys.readouterr().out.split())

    place.gate.breaks(TRAINING, broken=False)
    assert place.run("retry") == 0
    after = place.jobs()
    assert {name: jobs[: len(before[name])] for name, jobs in after.items()} == before
    assert [name for name in after if after[name] != before[name]] == [TRAIN, *LAST]
    place.until_state(place.job("report"), "COMPLETED")
    assert place.weights() == whole.weights
    assert place.run("status") == 0 and place.whole()
    assert [place.shown(job)["Restarts"] for job in (other, last)] == ["0", "1"], "one went back, and no other"
    assert BROKEN in shown, "the reason is what the job said last"


@from_scratch
def test_a_run_in_one_allocation_goes_on(place: Place, whole: Prepared) -> None:
    """slurm/run.sbatch, warned in the midst of its answers and of its training."""
    place.gate.close(GENERATION)
    place.gate.close()
    words = ("--time=10", "--mem=1G", f"--chdir={ROOT}", f"--output={place.folder}/run.out")
    job = place.cluster.sbatch(*words, str(ROOT / "slurm/run.sbatch"), *place.words)
    for name in (GENERATION, TRAINING):
        place.until_held(name)
        place.cluster.run("scancel", "--signal=USR1", "--batch", job)
        place.until(f"{name} goes on", lambda name=name: not place.gate.held(name))
    place.until_state(job, "COMPLETED")
    assert REQUEUED.findall((place.folder / "run.out").read_text()) == [job, job]
    assert place.weights() == whole.weights and place.whole()


def test_a_real_limit_is_warned_of(limited: Place, whole: Prepared) -> None:
    job = limited.job(TRAIN)
    limited.until("it is made", lambda: limited.cluster.jobs()[job] == "COMPLETED", timeout=300)
    assert job in REQUEUED.findall(limited.log(TRAIN))
    assert int(limited.shown(job)["Restarts"]) >= 1
    assert limited.weights() == whole.weights and limited.whole()
