"""Jobs that SLURM warns, preempts, requeues or kills, or whose node is lost, end with the weights of a run that nobody
touched, bit for bit: on one machine the same steps give the same bits.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from debian import SLURM, lacking
from places import PYTHONPATH
from slurm_cluster import Cluster, slurm_words
from slurm_gate import LEASE, STOP, Gate, alive
from tiny_run import ROOT, call, folders, tiny, typed

from src.experiment.graph import nodes_of
from src.kernel.artifact import with_ancestors
from src.kernel.store import Store
from src.launch.slurm.ledger import Ledger

IGNORED = "ignore:.*gradient_checkpointing:FutureWarning"
pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800), pytest.mark.filterwarnings(IGNORED)]

TRAIN, LAST = "it1-training", ("it1-evaluation", "report")
REQUEUED = re.compile(r"^task: saved; job (\S+) goes back into the queue$", re.M)
TWO = ("hardware.devices.count=2", "+deepspeed@hardware.devices.deepspeed=zero2", "train.batch_pairs=2")
RESOLVE = """#!/usr/bin/env bash
# The names of the cluster's nodes mean nothing to anybody else.
[ "$1 $2" = "show hostnames" ] && exec printf '127.0.0.1\\n127.0.0.1\\n'
exec {scontrol} "$@"
"""


class Whole(NamedTuple):
    """A run that nobody touched. The folder `begun` has the store as its training found it."""

    folder: Path
    words: list[str]
    """Overrides but for those of a folder."""

    def words_in(self, folder: Path) -> list[str]:
        return [*self.words, f"+method.gate={folder / 'gate'}", *folders(folder)]


def made_whole(llama: Path, folder: Path, *more: str) -> Whole:
    """Make the run in this process."""
    words = ["method._target_=slurm_gate.HeldSPPO", "iter=1", "train.batch_pairs=1"]
    words += ["train.epochs=2", "train.schedule_epochs=2"]  # steps enough
    whole = Whole(folder, [word for word in tiny(llama, folder, *words, *more) if word not in folders(folder)])
    (folder / "gate").mkdir(parents=True)
    nodes = nodes_of(typed(*whole.words_in(folder)))
    early = [node.name for node in nodes if "it1/policy" not in {one.name for one in with_ancestors(node)}]
    assert call(*whole.words_in(folder), f"only=[{','.join(early)}]") == 0
    shutil.copytree(folder / "store", folder / "begun", symlinks=True)
    assert call(*whole.words_in(folder)) == 0
    return whole


def weights(folder: Path) -> bytes:
    """Return the weights of the one trained policy."""
    (metrics,) = (folder / "store" / "policy").glob("*/metrics.jsonl")
    return (metrics.parent / "model.safetensors").read_bytes()


class Place:
    """The same run as jobs, in another folder. What comes before its training is made; the training is held."""

    def __init__(self, whole: Whole, cluster: Cluster, folder: Path, *launcher: str) -> None:
        self.whole, self.cluster, self.folder = whole, cluster, folder
        self.words, self.launcher, self.gate = whole.words_in(folder), launcher, Gate(folder / "gate")
        self.gate.folder.mkdir(parents=True)
        self.gate.close()
        shutil.copytree(whole.folder / "begun", folder / "store", symlinks=True)

    def run(self, *verb: str) -> int:
        """Call the command in this process; return its exit code."""
        return call(*verb, *self.words, *self.launcher)

    def jobs(self, name: str) -> list[str]:
        """Return the ids of the jobs of a name, the earliest first."""
        tokens = [one.token for one in Ledger(self.folder / "store").submissions if one.name == name]
        return [job for token in tokens for job, one in self.cluster.jobs().items() if one.token == token]

    def log(self) -> str:
        """Return what the last training has written, in all its starts."""
        last = [one for one in Ledger(self.folder / "store").submissions if one.name == TRAIN][-1]
        return last.log(0).read_text(errors="replace")

    def until_held(self, but: int | None = None) -> int:
        """Wait for a process at the gate; return it."""
        self.cluster.until("a training is held", lambda: self.gate.held() - {but})
        return (self.gate.held() - {but}).pop()

    def until_gone(self, pid: int) -> None:
        self.cluster.until(f"process {pid} has left the gate, or is dead", lambda: pid not in self.gate.held())

    def until_state(self, job: str, state: str) -> None:
        self.cluster.until(f"{job} is {state}", lambda: self.cluster.jobs()[job].state == state)

    def show(self, job: str, field: str) -> str:
        """Return a field of `scontrol show job`."""
        words = self.cluster.run("scontrol", "show", "job", "-o", job).split()
        return next(word for word in words if word.startswith(f"{field}=")).partition("=")[2]

    def check(self, job: str) -> None:
        """Assert that the run is made when a job has ended well, as if nothing had happened."""
        self.until_state(job, "COMPLETED")
        assert weights(self.folder) == weights(self.whole.folder)
        assert call("verify", *self.words) == 0 and not Store(self.folder / "store").leftovers()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of a test's own, which may kill its daemons. It starts jobs again soon, and they find the tests."""
    if reason := lacking(SLURM):
        pytest.skip(reason)
    with Cluster(requeue_wait=10) as cluster:
        for key, value in {**cluster.env, "PYTHONPATH": PYTHONPATH}.items():
            monkeypatch.setenv(key, value)
        yield cluster


@pytest.fixture(scope="module")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        return made_whole(llama, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def place(whole: Whole, cluster: Cluster, tmp_path: Path) -> Place:
    return Place(whole, cluster, tmp_path / "place", *slurm_words("launcher.site.partition=low"))


def test_killed_it_fails_and_retry_goes_on(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Jobs of what is done are not submitted again."""
    assert place.run() == 0
    os.kill(place.until_held(), signal.SIGKILL)
    place.until_state(place.jobs(TRAIN)[0], "FAILED")
    for name in LAST:
        place.until_state(place.jobs(name)[0], "CANCELLED")
    capsys.readouterr()
    assert place.run("status") == 1 and "it1 training" in capsys.readouterr().out
    assert place.run("retry") == 0 and place.run("retry") == 0, "the second submits nothing"
    assert [len(place.jobs(name)) for name in (TRAIN, *LAST)] == [2, 2, 2]
    place.check(place.jobs("report")[1])


def test_warned_requeued_and_preempted_it_goes_on(place: Place) -> None:
    """One job goes through all three."""
    assert place.run() == 0
    (job,), cluster = place.jobs(TRAIN), place.cluster
    for end in (("scancel", "--signal=USR1", "--batch", job), ("scontrol", "requeue", job)):
        pid = place.until_held()
        place.gate.close()
        cluster.run(*end)
        place.until_gone(pid)
    pid, node = place.until_held(), place.show(job, "NodeList")
    high = cluster.sbatch("--partition=high", f"--nodelist={node}", "--cpus-per-task=4", "--wrap", "true")
    place.until_gone(pid)
    place.until_state(high, "COMPLETED")
    place.until_state(job, "COMPLETED")
    assert REQUEUED.findall(place.log()) == [job, job], "as its handler of SIGUSR1 says, twice"
    assert int(place.show(job, "Restarts")) >= 3
    place.check(place.jobs("report")[0])


def test_in_one_allocation_it_goes_on(whole: Whole, cluster: Cluster, tmp_path: Path) -> None:
    """slurm/run.sbatch carries it out."""
    place = Place(whole, cluster, tmp_path / "place")
    out = tmp_path / "run.out"
    words = ("--time=20", "--mem=1G", f"--chdir={ROOT}", f"--output={out}", str(ROOT / "slurm/run.sbatch"))
    job = cluster.sbatch(*words, *place.words)
    place.until_held()
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    place.check(job)
    assert REQUEUED.findall(out.read_text()) == [job]


def test_an_orphan_on_a_lost_node_that_wakes_up_spoils_nothing(
    whole: Whole, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM takes its node for lost: another start takes over, and then the two work at once."""
    monkeypatch.setenv(LEASE, "5")
    place = Place(whole, cluster, tmp_path / "place", *slurm_words())
    assert place.run() == 0
    (job,), orphan = place.jobs(TRAIN), place.until_held()
    node = place.show(job, "NodeList")
    place.gate.close()
    psutil.Process(orphan).suspend()
    cluster.lose(node)
    pid = place.until_held(but=orphan)
    assert place.show(job, "NodeList") != node and place.show(job, "Restarts") == "1"
    assert f"no sign of life of process {orphan}" in place.log()
    (place.gate.folder / f"held-{orphan}").unlink()
    psutil.Process(orphan).resume()
    cluster.until("the orphan ends", lambda: not alive(orphan))
    assert "a later attempt has taken over; this one ends" in place.log()
    assert alive(pid) and cluster.jobs()[job].state == "RUNNING"
    place.gate.open()
    place.check(place.jobs("report")[0])


def test_processes_on_two_nodes_save_together_and_go_on(
    llama: Path, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (programs := tmp_path / "bin").mkdir()
    (programs / "scontrol").write_text(RESOLVE.format(scontrol=shutil.which("scontrol")))
    (programs / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    whole = made_whole(llama, tmp_path / "whole", *TWO)
    place = Place(whole, cluster, tmp_path / "place", *slurm_words("hardware.devices.nodes=2"))
    assert place.run() == 0
    (job,) = place.jobs(TRAIN)
    place.until_held()
    assert place.show(job, "NumNodes") == "2"
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    place.check(place.jobs("report")[0])
    assert REQUEUED.findall(place.log()) == [job] and place.show(job, "Restarts") == "1"
    assert not list(place.folder.glob(STOP))
