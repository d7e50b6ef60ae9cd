"""What the launcher relies on, asked of a real SLURM: dependencies, requeues, warnings and losses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from places import LIB, PYTHONPATH
from slurm_cluster import Cluster, ClusterError, cluster, install, processes  # noqa: F401

pytestmark = pytest.mark.full

KILL = "--kill-on-invalid-dep=yes"
ONCE = 'echo start ${SLURM_RESTART_COUNT:-0}; [ -n "$SLURM_RESTART_COUNT" ] || '
"""Before what only the first start of a job does."""
STARTER = """
import sys, time
from slurm_cluster import Cluster
cluster = Cluster(nodes=1)
cluster.start()
cluster.sbatch("--wrap", "trap '' TERM; env -i sleep 600 & echo $! > pid.new; mv pid.new pid; wait")
while not (cluster.root / "jobs/pid").exists():
    time.sleep(0.1)
print(cluster.root, (cluster.root / "jobs/pid").read_text(), flush=True)
sys.stdin.read()
"""


def elements(cluster: Cluster, job: str) -> dict[int, str]:  # noqa: F811
    """State by index."""
    return {int(key.split("_")[1]): state for key, state in cluster.jobs().items() if key.startswith(f"{job}_")}


def test_elements_of_an_array_get_gpus_of_their_own(cluster: Cluster, tmp_path: Path) -> None:  # noqa: F811
    line = 'echo "$SLURM_ARRAY_TASK_ID $CUDA_VISIBLE_DEVICES"; sleep 1'
    job = cluster.sbatch("--array=3-6", "--nodelist=n1", "--gres=gpu:2", f"--output={tmp_path}/%a", "--wrap", line)
    cluster.wait(job, "COMPLETED")
    assert elements(cluster, job) == dict.fromkeys([3, 4, 5, 6], "COMPLETED")
    said = [(tmp_path / str(i)).read_text().split() for i in range(3, 7)]
    assert [index for index, _ in said] == ["3", "4", "5", "6"]
    assert sorted(gpu for _, gpus in said for gpu in gpus.split(",")) == list("01234567")


def test_a_broken_chain_is_cancelled(cluster: Cluster) -> None:  # noqa: F811
    first = cluster.sbatch("--wrap", "true")
    middle = cluster.sbatch(f"--dependency=afterok:{first}", KILL, "--wrap", "exit 3")
    last = cluster.sbatch(f"--dependency=afterok:{middle}", KILL, "--wrap", "true")
    after = cluster.sbatch(f"--dependency=afterok:{last}", KILL, "--wrap", "true")
    cluster.wait(after, "CANCELLED")
    assert [cluster.jobs()[job] for job in (first, middle, last)] == ["COMPLETED", "FAILED", "CANCELLED"]


def test_an_element_waits_for_its_own_element_of_each_array(cluster: Cluster) -> None:  # noqa: F811
    slow = cluster.sbatch("--array=0-2", "--wrap", 'sleep "$SLURM_ARRAY_TASK_ID"')
    broken = cluster.sbatch("--array=0-2", "--wrap", "[ $SLURM_ARRAY_TASK_ID != 1 ]")
    both, plain = f"aftercorr:{slow}:{broken}", cluster.sbatch("--wrap", "true")
    jobs = [
        cluster.sbatch("--array=0-2", f"--dependency={wait}", KILL, "--wrap", "true")
        for wait in (both, f"afterok:{plain},{both}")
    ]
    named = {i: cluster.sbatch(f"--dependency=afterok:{broken}_{i}", KILL, "--wrap", "true") for i in (0, 1)}
    for job in (*jobs, *named.values()):
        cluster.wait(job, "COMPLETED", "CANCELLED")
    for job in jobs:
        assert elements(cluster, job) == {0: "COMPLETED", 1: "CANCELLED", 2: "COMPLETED"}
    assert [cluster.jobs()[named[i]] for i in (0, 1)] == ["COMPLETED", "CANCELLED"]


def test_an_index_that_the_other_array_lacks_waits_for_all_of_it(cluster: Cluster) -> None:  # noqa: F811
    short = cluster.sbatch("--array=0-1", "--wrap", "sleep 1; [ $SLURM_ARRAY_TASK_ID = 0 ]")
    long = cluster.sbatch("--array=0-2", f"--dependency=aftercorr:{short}", KILL, "--wrap", "true")
    cluster.wait(long, "COMPLETED", "CANCELLED")
    assert elements(cluster, long) == {0: "COMPLETED", 1: "CANCELLED", 2: "CANCELLED"}


def test_a_requeued_job_knows_its_restarts(cluster: Cluster, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "out"
    job = cluster.sbatch(f"--output={out}", "--open-mode=append", "--wrap", f"{ONCE} sleep 600")
    cluster.wait(job, "RUNNING")
    cluster.scontrol("requeue", job)
    cluster.wait(job, "COMPLETED")
    assert [line for line in out.read_text().splitlines() if line.startswith("start")] == ["start 0", "start 1"]


def test_a_preempted_job_is_warned_and_starts_again(cluster: Cluster, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "out"
    node = ("--nodelist=n1", "--cpus-per-task=4")
    line = f"trap 'echo warned' USR1; {ONCE} while :; do sleep 0.1; done"
    words = ("--signal=B:USR1@30", "--open-mode=append", f"--output={out}")
    low = cluster.sbatch("--partition=low", *node, *words, "--wrap", line)
    cluster.wait(low, "RUNNING")
    high = cluster.sbatch("--partition=high", *node, "--wrap", "true")
    cluster.wait(high, "COMPLETED")
    cluster.wait(low, "COMPLETED")
    said = [line for line in out.read_text().splitlines() if line.startswith(("start", "warned"))]
    assert said == ["start 0", "warned", "start 1"]


def test_the_job_of_a_lost_node_starts_again(cluster: Cluster, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "out"
    words = ("--nodelist=n2", "--open-mode=append", f"--output={out}")
    job = cluster.sbatch(*words, "--wrap", f"{ONCE} sleep 600")
    cluster.wait(job, "RUNNING")
    cluster.kill("n2")
    cluster.scontrol("update", "NodeName=n2", "State=DOWN", "Reason=lost")
    cluster.wait(job, "PENDING")
    cluster.restart("n2")
    cluster.wait(job, "COMPLETED")
    assert "start 1" in out.read_text()


def test_jobs_outlive_the_controller(cluster: Cluster, tmp_path: Path) -> None:  # noqa: F811
    go, out = tmp_path / "go", tmp_path / "out"
    line = f"{ONCE} until [ -e {go} ]; do sleep 0.1; done"
    job = cluster.sbatch("--open-mode=append", f"--output={out}", "--wrap", line)
    after = cluster.sbatch(f"--dependency=afterok:{job}", "--wrap", "true")
    cluster.wait(job, "RUNNING")
    cluster.settle()
    cluster.kill("slurmctld")
    cluster.restart("slurmctld")
    assert [cluster.jobs()[name] for name in (job, after)] == ["RUNNING", "PENDING"]
    go.touch()
    cluster.wait(after, "COMPLETED")
    assert out.read_text() == "start 0\n"


def test_clusters_do_not_see_each_other(cluster: Cluster) -> None:  # noqa: F811
    mine = cluster.sbatch("--wrap", "sleep 600")
    with Cluster(nodes=1, first_job=1, max_array_size=3) as other:
        assert other.sbatch("--wrap", "sleep 600") == "1"
        with pytest.raises(ClusterError, match=r"(?s)Invalid job array.*slurmctld\.log"):
            other.sbatch("--array=0-3", "--wrap", "true")
        assert os.environ["SLURM_CONF"] == cluster.env["SLURM_CONF"] != other.env["SLURM_CONF"]
        cluster.wait(mine, "RUNNING")
        other.wait("1", "RUNNING")
        assert "1" not in cluster.jobs() and list(other.jobs()) == ["1"]
    assert not other.root.exists() and not processes(other.root)
    assert cluster.jobs()[mine] == "RUNNING"
    cluster.run("scancel", mine)


def test_nothing_outlives_a_killed_starter() -> None:
    if reason := install():
        pytest.skip(reason)
    pipe = subprocess.PIPE
    env = os.environ | {"PYTHONPATH": PYTHONPATH}
    with subprocess.Popen([sys.executable, "-c", STARTER], env=env, stdin=pipe, stdout=pipe, text=True) as starter:
        assert starter.stdout is not None
        root, job = starter.stdout.readline().split()
        before = {process.pid: process.name() for process in processes(Path(root))}
        starter.kill()
    assert before[int(job)] == "sleep" and {"munged", "slurmctld", "slurmd", "slurmstepd"} <= set(before.values())
    end = time.monotonic() + 20
    while Path(root).exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    assert not processes(Path(root))
    assert not psutil.pid_exists(int(job)) or psutil.Process(int(job)).status() == psutil.STATUS_ZOMBIE


def test_sacct_tells_of_ended_jobs() -> None:
    if reason := install(accounting=True):
        pytest.skip(reason)
    with Cluster(nodes=1, accounting=True) as own:
        job = own.sbatch("--comment=token", "--wrap", "exit 7")
        own.wait(job, "FAILED")
        end, words = time.monotonic() + 20, ("sacct", "-nXP", "-j", job, "--format=State,ExitCode,Comment")
        while own.run(*words) != "FAILED|7:0|token":
            assert time.monotonic() < end, own.run(*words)
            time.sleep(0.2)


def test_a_command_may_run_inside_a_cluster_of_one_node() -> None:
    """And ends with the command's exit code; nothing of the cluster is left."""
    if reason := install():
        pytest.skip(reason)
    script, line = LIB / "one_machine_slurm.py", "srun nproc && echo $SLURM_CONF && exit 7"
    done = subprocess.run([sys.executable, script, "bash", "-c", line], capture_output=True, text=True, timeout=120)
    assert done.returncode == 7, done.stderr
    assert not Path(done.stdout.split()[-1]).exists()
    assert subprocess.run([sys.executable, script], capture_output=True).returncode == 2
