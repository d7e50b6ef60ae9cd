"""Submission to a real SLURM: what it takes, in which order it is carried out, and that nothing is done twice.

The command of the jobs is a stub (tests/lib/stub_jobs.py); tests/whole/test_slurm_survival.py has real ones.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from slurm_cluster import ClusterError, cluster, install  # noqa: F401
from stub_jobs import Place, points_of, words_of
from stub_places import GRID, check_order, error_of, left_nothing, place, small  # noqa: F401
from tiny_run import ROOT, call, folders

from src.slurm import client
from src.sweep import Sweep

# ruff: noqa: F811

pytestmark = pytest.mark.full

Capture = pytest.CaptureFixture[str]
ONCE = ["start-setup", "base-evaluation", "null-evaluation", "it1-ranking", "it1-reference"]


# What the cluster does not take --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("launcher.site.partition=nope", "launcher.site.partition: there is no nope; there are high, low, main"),
        ("launcher.jobs.training.partition=nope", "launcher.jobs.training.partition: there is no nope; there are"),
        ("launcher.jobs.training.minutes=61", "launcher.jobs.training.minutes: 61, but partition main ends jobs after"),
        ("launcher.jobs.ranking.cpus=5", "launcher.jobs.ranking.cpus: 5 a node, but no node of partition main has"),
        ("launcher.jobs.report.memory_gb=8", "launcher.jobs.report.memory_gb: 8 a node, but no node of"),
        ("launcher.jobs.setup.gpus=9", "launcher.jobs.setup.gpus: 9 a node, but no node of"),
        ("launcher.jobs.training.gpus=1 launcher.site.gpu=gpu:a100", "launcher.jobs.training.gpus: 1 a node, but no"),
        ("hardware=8xa100_80gb launcher.jobs.training.gpus=4", "launcher.jobs.training.gpus: 4, but hardware=8xa100"),
        ("hardware=2x8xh100_80gb hardware.devices.count=3 hardware.devices.nodes=3", "launcher.jobs.training: 3 nodes"),
        ("~launcher.jobs.ranking", "launcher.jobs.ranking: missing"),
        ("launcher.warn_seconds=600", "launcher.warn_seconds: 600 is no time to work in, for launcher.jobs.evaluation"),
        ("launcher.site.constraint=nope", "launcher.jobs.evaluation: sbatch: "),
        ("launcher.site.partition='main,nope'", "launcher.site.partition: there is no nope; there are high, low, main"),
        ("only=it1/pairs", "only: "),
    ],
)
def test_what_no_node_can_give_is_refused_with_its_key(words: str, named: str, place: Place, capsys: Capture) -> None:
    before = place.cluster.jobs()
    assert place.call(*words.split()) == 2
    assert error_of(capsys).startswith(named)
    assert place.cluster.jobs() == before and left_nothing(place.folder)


def test_a_folder_that_slurm_cannot_be_told_of_is_refused_and_nothing_is_submitted(
    place: Place, capsys: Capture
) -> None:
    before = place.cluster.jobs()
    assert place.call(f"runs='{place.folder}/my runs'") == 2
    assert "use a folder without blanks, quotes and %" in error_of(capsys)
    assert place.cluster.jobs() == before


def test_without_a_cluster_there_is_a_plan_and_no_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.delenv("SLURM_CONF", raising=False)
    for path in ([], ["PATH"]):
        for key in path:
            monkeypatch.setenv(key, str(tmp_path))
        if not path and install() is not None:
            continue
        assert call("plan", *GRID, *folders(tmp_path), "launcher=slurm") == 0
        shown = capsys.readouterr()
        assert "it1-training" in shown.out and "not checked against a cluster" in shown.out and shown.err == ""
        assert call(*GRID, *folders(tmp_path), "launcher=slurm") == 2
        assert error_of(capsys).startswith("launcher: ")
    assert left_nothing(tmp_path)


def test_a_plan_shows_arrays_sizes_dependencies_resources_and_hours_and_makes_nothing(
    place: Place, capsys: Capture
) -> None:
    before = place.cluster.jobs()
    assert place.call("plan", *GRID) == 0
    shown = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines()]
    rows = {first: others for first, *others in filter(None, cells)}
    assert rows["it1 generation"][:3] == ["3", "1", "1"] and rows["it1 training"][:3] == ["3", "3", "3"]
    assert rows["it1-generation"][:2] == ["2", "all of start-setup"]
    assert rows["it1-training"][:2] == ["3", "all of it1-reference"] and "10 min" in rows["it1-training"][2]
    assert rows["report"][:2] == ["3", "it1-evaluation, one to one"]
    assert "9 arrays, 16 jobs" in shown
    assert "hours, were none shared" in shown and "the cluster takes such jobs" in shown
    assert place.cluster.jobs() == before and left_nothing(place.folder)


# Order -------------------------------------------------------------------------------------------------------------


def test_jobs_run_in_order(place: Place) -> None:
    assert place.call(*GRID) == 0
    place.wait()
    assert set.union(*place.states().values()) == {"COMPLETED"}
    assert check_order(place, *GRID) == 7 + 3 * 3


@pytest.mark.parametrize("small", [{"max_array_size": 1001}], indirect=True, ids=[""])
def test_two_hundred_jobs_run_in_order(small: Place) -> None:
    words = ("-m", "iter=2", f"method.eta={','.join(map(str, range(1, 23)))}")
    assert small.call(*words) == 0
    small.wait(300)
    assert check_order(small, *words) == 7 + 22 * 9


@pytest.mark.parametrize("small", [{"max_array_size": 4}], indirect=True, ids=[""])
def test_arrays_are_no_larger_than_the_cluster_takes(small: Place) -> None:
    words = ("-m", "iter=2", "method.eta=1,2,3,4,5,6,7,8,9")
    assert small.call(*words) == 0
    sizes = Counter({told.name: len(told.elements) for told in small.ledger.submissions.values()})
    assert max(sizes.values()) == 4 and [sizes[f"it1-training-{i}"] for i in (1, 2, 3)] == [4, 4, 1]
    small.wait(120)
    assert check_order(small, *words) == 7 + 9 * 9


def test_the_failure_of_a_point_stops_no_other(place: Place) -> None:
    place.fail("method.eta=2 only=[it1/policy]")
    assert place.call(*GRID) == 0
    place.wait()
    states = place.cluster.jobs()
    found = {(name, index): states[job] for job, (name, index) in place.elements().items()}
    assert found.pop(("it1-training", 1)) == "FAILED"
    assert [found.pop((name, 1)) for name in ("it1-evaluation", "report")] == ["CANCELLED"] * 2
    others = {key: state for key, state in found.items() if key not in (("it1-generation", 1),)}
    assert set(others.values()) == {"COMPLETED"} and found["it1-generation", 1] == "COMPLETED"


def test_a_job_without_an_index_waits_for_all_of_an_array(place: Place) -> None:
    """So tests/launch/test_slurm_arrays.py takes it to be: such a job must name the element."""
    first = place.cluster.sbatch("--array=0-1", "--wrap", "[ $SLURM_ARRAY_TASK_ID = 0 ]")
    kill = "--kill-on-invalid-dep=yes"
    alone = place.cluster.sbatch(f"--dependency=aftercorr:{first}", kill, "--wrap", "true")
    named = place.cluster.sbatch(f"--dependency=afterok:{first}_0", kill, "--wrap", "true")
    place.cluster.wait(alone, "CANCELLED")
    place.cluster.wait(named, "COMPLETED")


# Nothing twice -----------------------------------------------------------------------------------------------------


def test_the_same_words_again_submit_nothing_again(place: Place, capsys: Capture) -> None:
    place.close()
    assert place.call(*GRID) == 0
    before = place.elements()
    assert len(before) == 16
    assert place.call(*GRID) == 0
    assert "nothing to submit" in capsys.readouterr().out.splitlines()[-1]
    assert place.elements() == before == {job: before[job] for job in place.alive()}


def test_a_submission_that_was_cut_off_submits_the_rest(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an array is in the queue, before the ledger knows its job."""
    place.close()
    sbatch, calls = client.slurm, []

    def dies(*words: str) -> str:
        said = sbatch(*words)
        calls.append(words)
        if words[0] == "sbatch" and sum(one[0] == "sbatch" for one in calls) == 4:
            raise KeyboardInterrupt
        return said

    monkeypatch.setattr(client, "slurm", dies)
    assert place.call(*GRID) == 130
    monkeypatch.setattr(client, "slurm", sbatch)
    assert place.call(*GRID) == 0
    names = Counter(name for name, _ in place.elements().values())
    assert sum(names.values()) == 16 and max(names[name] for name in ONCE) == 1
    tokens = Counter(one.token for one in client.queue() if one.job in place.elements())
    assert len(tokens) == len(place.ledger.submissions)


def test_what_another_sweep_makes_is_waited_for_and_outlives_its_end(place: Place, capsys: Capture) -> None:
    place.close()
    assert place.call(*GRID) == 0
    first = place.elements()
    other = ("-m", "iter=1", "method.eta=4,5")
    assert place.call(*other) == 0
    second = {job: name for job, (name, _) in place.elements().items() if job not in first}
    assert Counter(second.values()) == {"it1-training": 2, "it1-evaluation": 2, "report": 2}
    capsys.readouterr()
    assert place.call("cancel", *GRID) == 0
    assert capsys.readouterr().out.strip() == "9 jobs cancelled; 7 go on, for others wait for them"
    time.sleep(1)
    gone = {first[job][0] for job in first.keys() - place.alive()}
    assert gone == {"it1-training", "it1-evaluation", "report"} and second.keys() <= place.alive()
    place.open()
    place.wait()
    states = place.cluster.jobs()
    assert {states[job] for job in second} == {"COMPLETED"}


def test_cancelled_without_another_sweep_nothing_is_left(place: Place, capsys: Capture) -> None:
    place.close()
    assert place.call(*GRID) == 0
    capsys.readouterr()
    assert place.call("cancel", *GRID) == 0
    assert capsys.readouterr().out.strip() == "16 jobs cancelled"
    place.wait()
    assert place.call(*GRID) == 0, "again"
    assert len(place.alive()) == 16


def test_a_job_submits_too(place: Place) -> None:
    """What SLURM told that job is not for those it submits: with its memory they would be refused, or never start."""
    line = shlex.join([sys.executable, "-m", "src.main", *place.in_order(GRID)])
    job = place.cluster.sbatch("--mem=500M", f"--chdir={ROOT}", f"--output={place.folder}/out", "--wrap", line)
    place.cluster.wait(job, "COMPLETED", "FAILED")
    assert place.cluster.jobs()[job] == "COMPLETED", (place.folder / "out").read_text()
    place.wait()
    assert check_order(place, *GRID) == 16


def test_a_run_that_gets_longer_under_way_gets_its_report(place: Place) -> None:
    """The run folder is the same."""
    place.close()
    assert place.call("iter=1") == 0
    assert place.call("iter=2") == 0
    told = list(place.ledger.submissions.values())
    assert [one.name for one in told].count("it2-evaluation") == 1
    assert [one.name for one in told][-1] == "report", "after the last iteration"


def test_retry_submits_what_failed_and_what_waited_for_it(place: Place) -> None:
    place.fail("method.eta=2 only=[it1/policy]")
    assert place.call(*GRID) == 0
    place.wait()
    before = place.elements()
    place.fail(None)
    assert place.call("retry", *GRID) == 0
    names = Counter(name for job, (name, _) in place.elements().items() if job not in before)
    assert {"it1-training", "it1-evaluation", "report"} <= names.keys()


def test_a_script_is_submitted_again_by_hand(place: Place) -> None:
    place.fail("method.eta=2 only=[it1/policy]")
    assert place.call(*GRID) == 0
    place.wait()
    place.fail(None)
    (told,) = [told for told in place.ledger.submissions.values() if told.name == "it1-training"]
    job = place.cluster.run("sbatch", "--parsable", "--array=1", str(told.script))
    place.cluster.wait(job, "COMPLETED", "FAILED")
    assert place.cluster.jobs()[f"{job}_1"] == "COMPLETED"
    ended = [words for moment, words in place.noted() if moment == "ends"]
    assert [one for one in ended if {"method.eta=2", "only=[it1/policy]"} <= set(one)]


# More than the queue takes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [{"max_job_count": 12}], indirect=True, ids=[""])
def test_what_the_queue_does_not_take_is_submitted_later_from_inside_a_job(small: Place, capsys: Capture) -> None:
    assert small.call("plan", *GRID) == 0
    assert "a job submits the rest" in capsys.readouterr().out
    small.make(*GRID)
    sweep = Sweep(points_of(*small.in_order(GRID)))
    wanted = {own for task in sweep.tasks(2) for own in words_of(task, sweep)}
    assert small.call(*GRID) == 0
    first = list(small.ledger.submissions.values())
    assert [one.name for one in first if one.job][-1] == "rest"
    end = time.monotonic() + 120
    while {words for moment, words in small.noted() if moment == "ends"} != wanted:
        assert time.monotonic() < end, small.states()
        for told in small.cluster.run("squeue", "-h", "--name=rest", "--format=%i %r").splitlines():
            if told.endswith("BeginTime"):  # it has found the queue still full, and would wait for ten minutes
                with suppress(ClusterError):
                    small.cluster.scontrol("update", f"JobId={told.split()[0]}", "StartTime=now")
        time.sleep(0.5)
    assert Counter(small.noted()) == Counter((moment, words) for words in wanted for moment in ("begins", "ends"))
    assert len(small.ledger.submissions) > len(first)
