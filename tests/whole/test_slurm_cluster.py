"""What the launcher relies on, asked of a real SLURM, what that could not carry out, and a cluster of one node."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from places import LIB
from slurm_cluster import Cluster, slurm_words
from tiny_run import call, folders

pytestmark = pytest.mark.full

NODE = "sbatch: allocation failure: Requested node configuration is not available; "
REFUSED = {
    "launcher.site.partition=nope": "launcher.jobs.setup: sbatch: allocation failure: Invalid partition name specified",
    "launcher.jobs.ranking.cpus=5": f"launcher.jobs.ranking: {NODE}",
    "launcher.jobs.report.memory_gb=80": f"launcher.jobs.report: {NODE}",
    "launcher.jobs.training.gpus=1 launcher.site.gpu=gpu:a100": f"launcher.jobs.training: {NODE}",
    "launcher.site.constraint=nope": "launcher.jobs.setup: sbatch: allocation failure: Invalid feature specification",
}
"""tests/bad_inputs.md has more, of a cluster that is made up."""


def test_who_waits_for_whom(cluster: Cluster) -> None:
    """The twin in tests/launch/test_slurm_arrays.py knows this: an element waits for its own element of each array,
    for all of an array that has no such element, and so does a job without an index. Who waits for a failure ends.
    """
    fine = cluster.sbatch("--array=0-2", "--wrap", "true")
    broken = cluster.sbatch("--array=0-1", "--wrap", "[ $SLURM_ARRAY_TASK_ID != 1 ]")
    alone = cluster.sbatch("--wrap", "true")

    def after(words: str, *more: str) -> str:
        return cluster.sbatch(*more, f"--dependency={words}", "--kill-on-invalid-dep=yes", "--wrap", "true")

    last = after(f"afterok:{alone},aftercorr:{fine}:{broken}", "--array=0-2")
    wanted = {f"{last}_0": "COMPLETED", f"{last}_1": "CANCELLED", f"{last}_2": "CANCELLED"}
    wanted |= {after(f"afterok:{broken}_0"): "COMPLETED", after(f"afterok:{broken}_1"): "CANCELLED"}
    wanted |= {after(f"aftercorr:{broken}"): "CANCELLED", (single := after(f"aftercorr:{fine}")): "COMPLETED"}
    wanted |= {after(f"afterok:{last}_1:{single}"): "CANCELLED"}
    cluster.until("all have ended", lambda: not wanted.keys() & cluster.alive())
    jobs = cluster.jobs()
    assert {job: jobs[job].state for job in wanted} == wanted


def test_what_no_node_can_give_is_refused_with_its_key(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = cluster.jobs()
    for words, line in REFUSED.items():
        assert call(*folders(tmp_path), *slurm_words(), *words.split()) == 2, words
        assert capsys.readouterr().err.startswith(f"error: {line}"), words
    assert cluster.jobs() == before and not list(tmp_path.iterdir())


def test_a_command_may_run_inside_a_cluster_of_one_node_and_nothing_is_left_of_that(running: Cluster) -> None:
    line = "srun nproc && echo $SLURM_CONF && exit 7"
    command = [sys.executable, LIB / "one_machine_slurm.py", "bash", "-c", line]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    configuration = done.stdout.split()[-1]
    assert configuration != running.env["SLURM_CONF"] and not Path(configuration).exists()
