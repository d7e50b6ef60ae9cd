"""Submissions that are cut off are gone on with, and jobs that do not get on are given up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import PYTHONPATH
from slurm_cluster import Cluster, cluster  # noqa: F401
from slurm_runs import REQUEUED, ROOT, Place, Prepared, prepared, slurm_words, starts

from src.slurm.ledger import Ledger

pytestmark = pytest.mark.full

Capture = pytest.CaptureFixture[str]
SBATCH = """#!/usr/bin/env bash
# The second call of a command goes wrong.
if [ -e {first} ]; then
    rm {first}
    {instead}
fi
touch {first}
exec {sbatch} "$@"
"""
WRONG = {
    "killed when the job was submitted": '{sbatch} "$@" > /dev/null; kill -9 $PPID; exit 1',
    "killed before": "kill -9 $PPID; exit 1",
    "no controller": "echo 'sbatch: error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
    "no answer": '{sbatch} "$@" > /dev/null; echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1',
}


@pytest.fixture(scope="module")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(llama, tmp_path_factory)


@pytest.fixture(autouse=True)
def jobs_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)


@pytest.fixture
def places(whole: Prepared, cluster: Cluster, tmp_path: Path) -> Iterator[tuple[Place, Place]]:  # noqa: F811
    """Their jobs are queued, and none starts."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    words = slurm_words(site__partition="low")
    yield tuple(whole.place(cluster, tmp_path / name, *words, begun=False) for name in ("one", "other"))  # type: ignore[misc]
    cluster.run("scancel", "--partition=low")
    cluster.scontrol("update", "PartitionName=low", "State=UP")


def nothing_starts(cluster: Cluster) -> None:  # noqa: F811
    cluster.scontrol("update", "PartitionName=low", "State=DOWN")


def waits(place: Place) -> dict[str, set[str]]:
    """Name of each array in the queue -> those it waits for. Each is there once, and the ledger knows each."""
    rows = [line.split("|") for line in place.cluster.run("squeue", "-h", "--array", "--format=%F|%K|%k|%j|%E").split()]
    by_token = {told.token: told for told in Ledger.of(place.folder / "store").submissions.values()}
    own = [(job, index, by_token[token], name, after) for job, index, token, name, after in rows if token in by_token]
    elements = Counter(name for _, _, _, name, _ in own)
    assert elements == {told.name: len(told.elements) for _, _, told, _, _ in own}
    assert all(job == told.job for job, _, told, _, _ in own)
    names = {job: name for job, _, _, name, _ in own}
    return {name: {names[job] for job in re.findall(r":(\d+)", after)} for _, _, _, name, after in own}


def test_without_a_controller_nothing_is_submitted(places: tuple[Place, Place], capsys: Capture) -> None:
    place, _ = places
    place.cluster.settle()
    place.cluster.kill("slurmctld")
    capsys.readouterr()
    code = place.run()
    said = capsys.readouterr().err.strip().splitlines()
    place.cluster.restart("slurmctld")
    nothing_starts(place.cluster)
    assert code == 3 and not place.jobs()
    assert len(said) == 1 and re.fullmatch(r"error: launcher: \w+: .*[Uu]nable to contact slurm controller.*", said[0])
    assert place.run() == 0
    assert len(waits(place)) == len(place.jobs()) == 9


def test_a_submission_that_is_cut_off_is_gone_on_with(
    places: tuple[Place, Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Again and again, in whatever way; in the end every job is there once and waits as if nothing had happened."""
    whole, cut = places
    nothing_starts(whole.cluster)
    assert whole.run() == 0
    expected, path = waits(whole), os.environ["PATH"]
    sbatch = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
    for number, (name, instead) in enumerate(WRONG.items()):
        (bin := tmp_path / f"bin{number}").mkdir()
        (bin / "sbatch").write_text(
            SBATCH.format(first=bin / "called", sbatch=sbatch, instead=instead.format(sbatch=sbatch))
        )
        (bin / "sbatch").chmod(0o755)
        command = [sys.executable, "-m", "src.main", *cut.words, *cut.launcher]
        env = os.environ | {"PATH": f"{bin}:{path}"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
        code = -9 if "killed" in name else 3
        assert done.returncode == code, f"{name}: {done.stderr}"
        if "killed" not in name:
            (line,) = done.stderr.strip().splitlines()
            assert line.startswith("error: launcher: sbatch: ")
        queued = cut.cluster.run("squeue", "-h", "--format=%k").split()
        assert len(queued) == len(set(queued))
    assert cut.run() == 0
    got = waits(cut)
    assert got.keys() == expected.keys() and all(got[name] >= expected[name] for name in got)
    capsys.readouterr()
    assert cut.run() == 0
    assert "nothing to submit" in capsys.readouterr().out
    makers = Ledger.of(cut.folder / "store").makers().values()
    alive = cut.cluster.jobs()
    assert all(
        len({made.submission.job for made in made_by if alive[made.job] == "PENDING"}) == 1 for made_by in makers
    )
    assert cut.run("cancel") == 0


def test_a_job_that_does_not_get_on_is_given_up(whole: Prepared, cluster: Cluster, tmp_path: Path) -> None:  # noqa: F811
    """Requeued, warned, and then it has had its two starts."""
    place = whole.place(cluster, tmp_path)
    place.gate.close()
    out, limits = tmp_path / "run.out", ("launcher.attempts=2", "launcher.wait_seconds=300")
    words = ("--time=10", "--mem=1G", f"--chdir={ROOT}", f"--output={out}", str(ROOT / "slurm/run.sbatch"))
    job = cluster.sbatch(*words, *place.words, *limits)
    place.until("it has counted its start", lambda: starts(tmp_path / "store", job) == 1)
    cluster.scontrol("requeue", job)
    place.until("it backs off", lambda: "start 2 of 2 without progress; waiting 300 s" in out.read_text())
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    place.until_state(job, "FAILED")
    assert REQUEUED.findall(out.read_text()) == [job], "the warning reached it while it waited"
    said = f"error: launcher.attempts: job {job} was started 2 times without progress; "
    said += "mend what stops it, and submit it again"
    assert [line for line in out.read_text().splitlines() if line.startswith("error: ")] == [said]
    assert place.shown(job)["Restarts"] == "2"
