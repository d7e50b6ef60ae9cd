"""A sweep is submitted, waited for, cancelled and submitted again, to a SLURM that is made up.

It takes as many jobs as the test lets it, and the test says what becomes of them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_run import call, made_point, tiny, typed, typed_point
from toy_stages import Copy

from src.experiment.run_folder import link
from src.experiment.sweep import SETUP, Sweep
from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.kernel.store import Store
from src.launch.housekeeping import clean
from src.launch.slurm import client
from src.launch.slurm.arrays import OWN, Array
from src.launch.slurm.client import Queued
from src.launch.slurm.launcher import arrays_of, submit
from src.launch.slurm.ledger import Ledger, Maker
from src.launch.slurm.status import cancel, cells, print_status

Capture = pytest.CaptureFixture[str]
ALL = {"start-setup": 1, "base-evaluation": 1, "it1-generation": 2, "null-evaluation": 1, "it1-ranking": 1}
ALL |= {"it1-reference": 1, "it1-training": 3, "it1-evaluation": 3, "report": 3}
"""Arrays of three points and one iteration, and how many jobs each has."""


@functools.cache
def run_of(iterations: int) -> Any:
    return typed(f"iter={iterations}", "launcher=slurm")


@functools.cache
def launcher() -> Any:
    return typed_point("launcher=slurm").launcher


class Slurm:
    """A queue, and a sweep of three points whose jobs it holds."""

    def __init__(self, place: Path) -> None:
        self.place, self.numbers = place, itertools.count(100)
        self.iterations, self.etas = 1, range(1, 4)
        self.jobs: dict[Maker, Queued] = {}
        """Jobs that have not ended."""
        self.room = 9999
        """How many jobs the queue takes."""
        self.crashes_at = "nothing"
        """The command dies at an array of this name, after SLURM has heard of it."""

    def answer(self, *words: str, stdin: str = "") -> str:
        """Do what a command of SLURM does; return what it prints."""
        if words[0] == "squeue":
            jobs = [(*job.job.partition("_")[::2], job, maker.submission) for maker, job in self.jobs.items()]
            return "".join(f"{n}|{i or 'N/A'}|{job.state}|{job.reason}|{one.token}\n" for n, i, job, one in jobs)
        if words[0] == "scancel":
            self.jobs = {maker: job for maker, job in self.jobs.items() if not {job.job, job.job[:3]} & {*words}}
            return ""
        submission = Ledger(self.place / "store").submissions[-1]
        if len(self.jobs) + len(submission.makes) > self.room:
            raise UserError("launcher: sbatch: error: QOSMaxSubmitJobPerUserLimit")
        number = str(next(self.numbers))
        for index in submission.makes:
            name = f"{number}_{index}" if len(submission.makes) > 1 else number
            self.jobs[Maker(submission, index)] = Queued(name, "PENDING", "Priority")
        if self.crashes_at in words[-1]:
            raise KeyboardInterrupt
        return f"{number}\n"

    def job(self, name: str, index: int = 0) -> Maker:
        return next(maker for maker in self.jobs if (maker.submission.name, maker.index) == (name, index))

    def end(self, name: str) -> None:
        """End all jobs of an array. Nothing is made."""
        self.jobs = {maker: job for maker, job in self.jobs.items() if maker.submission.name != name}

    def alive(self) -> Counter[str]:
        return Counter(maker.submission.name for maker in self.jobs)

    def sweep(self) -> Sweep:
        run = dataclasses.replace(run_of(self.iterations), store=self.place / "store", runs=self.place / "runs")
        methods = [dataclasses.replace(run.method, eta=float(eta)) for eta in self.etas]
        runs = [dataclasses.replace(run, method=method) for method in methods]
        return Sweep([made_point(one, [f"method.eta={number}"]) for number, one in enumerate(runs)])

    def plan(self) -> list[Array]:
        return arrays_of(self.sweep(), 2, client.queue())[0]

    def left(self) -> dict[str, int]:
        """Return the arrays that would be submitted now, with how many jobs each has."""
        return {array.name: len(array.elements) for array in self.plan()}

    def submit(self) -> list[str]:
        """Submit what is missing; return the names of the arrays that went into the queue."""
        sweep, before = self.sweep(), {*self.jobs}
        submit(*arrays_of(sweep, 2, client.queue()), sweep, launcher())
        return list(dict.fromkeys(maker.submission.name for maker in self.jobs if maker not in before))

    def states(self, stage: str) -> list[str]:
        return [cell.state for cell in cells(self.sweep())[stage].values()]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    slurm = Slurm(tmp_path)
    monkeypatch.setattr(client, "slurm", slurm.answer)
    return slurm


# What is submitted -------------------------------------------------------------------------------------------------


def test_the_same_command_submits_what_the_queue_did_not_take(slurm: Slurm) -> None:
    """The first jobs are under way, so the others wait for them, and nothing is submitted twice."""
    assert slurm.left() == ALL
    slurm.room = 11
    for submitted in (list(ALL)[:7], []):
        before = slurm.alive()
        with pytest.raises(
            UserError, match="QOSMaxSubmit.*; not submitted: it1-evaluation and what follows .jobs: 6.$"
        ):
            slurm.submit()
        assert list((slurm.alive() - before).keys()) == submitted
    assert slurm.left() == {"it1-evaluation": 3, "report": 3}
    training = slurm.jobs[slurm.job("it1-training")].job.partition("_")[0]
    assert (training, OWN) in slurm.plan()[0].waits
    slurm.end("base-evaluation")
    slurm.room = 9999
    assert slurm.submit() == ["base-evaluation", "it1-evaluation", "report"] and slurm.left() == {}


def test_parts_are_submitted_together_or_not_at_all(slurm: Slurm) -> None:
    """An artifact of which some parts are under way counts as under way: its readers would not wait for the others."""
    slurm.iterations = 2
    parts = ["it2-generation-part1", "it2-generation-part2"]
    jobs = slurm.left()
    slurm.room = sum(jobs[name] for name in itertools.takewhile(lambda name: name != parts[1], jobs))
    with pytest.raises(UserError, match="it2-generation-part2 and what follows"):
        slurm.submit()
    assert not {*parts} & slurm.alive().keys()
    left = slurm.left()
    assert [left.get(name) for name in (*parts, "report")] == [3, 3, 3]


def test_a_submission_that_is_killed_after_sbatch_is_submitted_once(slurm: Slurm) -> None:
    """The command never learned the number of the job."""
    slurm.crashes_at = "it1-reference"
    with pytest.raises(KeyboardInterrupt):
        slurm.submit()
    slurm.crashes_at = "nothing"
    assert slurm.submit() == ["it1-training", "it1-evaluation", "report"]
    assert slurm.alive() == Counter(ALL)


def test_what_is_set_up_here_is_no_job(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    words = tiny(llama, tmp_path, "iter=1", "launcher=slurm", "launcher.site.setup_here=true")
    monkeypatch.setattr(client, "slurm", lambda *words, stdin="": {"squeue": "", "sbatch": "7\n"}[words[0]])
    assert call("plan", *words) == 0 and not (tmp_path / "store").exists()
    assert "start-setup" not in capsys.readouterr().out
    assert call(*words) == 0
    sweep = Sweep([typed_point(*words)])
    nodes = [node for nodes in sweep.nodes for node in nodes if node.job == SETUP]
    assert nodes and not any(map(sweep.missing, nodes))
    names = [one.name for one in Ledger(tmp_path / "store").submissions]
    assert names and not any("setup" in name for name in names)


# Jobs that are cancelled, or die while others go on ----------------------------------------------------------------


def test_a_cancelled_job_that_still_saves_is_submitted_again(slurm: Slurm, capsys: Capture) -> None:
    slurm.submit()
    before = slurm.jobs
    cancel(slurm.sweep())
    assert slurm.jobs == {} and f"\n{len(before)} jobs cancelled\n" in capsys.readouterr().out
    slurm.jobs = {maker: job._replace(state="COMPLETING") for maker, job in before.items()}
    assert slurm.left() == ALL
    assert {cell.state for row in cells(slurm.sweep()).values() for cell in row.values()} == {"cancelled"}


def test_what_others_wait_for_goes_on(slurm: Slurm) -> None:
    """Cancelled, one of three points loses its training, evaluation and report, and what all share goes on. When all
    three are cancelled, what another sweep of one more point waits for goes on, at any distance.
    """
    slurm.submit()
    slurm.etas = range(1, 2)
    cancel(slurm.sweep())
    assert slurm.alive() == Counter(ALL) - Counter(["it1-training", "it1-evaluation", "report"])
    assert [maker.index for maker in slurm.jobs if maker.submission.name == "report"] == [1, 2]
    slurm.etas = range(4, 5)
    slurm.submit()
    slurm.etas = range(1, 4)
    cancel(slurm.sweep())
    each = ["it1-training", "it1-evaluation", "report"]
    assert slurm.alive() == Counter(ALL | dict.fromkeys(each, 1))


def test_an_artifact_is_under_way_while_one_of_its_shares_is_and_then_all_shares_are_submitted(slurm: Slurm) -> None:
    slurm.submit()
    first = slurm.job("it1-generation")
    del slurm.jobs[first]
    assert slurm.states("it1 generation") == ["queued"] * 3 and slurm.left() == {}
    slurm.jobs = {}
    first.submission.log(0).write_text("out of memory")
    assert slurm.states("it1 generation") == ["failed"] * 3 and slurm.states("it1 ranking") == ["cancelled"] * 3
    assert slurm.left() == ALL


def test_status_shows_the_last_line_of_a_failed_job_and_what_others_wait_for(slurm: Slurm, capsys: Capture) -> None:
    """What waits for a job that has just failed has failed too: SLURM cancels it in its next round."""
    slurm.submit()
    failed, doomed = slurm.job("it1-training", 1), [slurm.job(name, 1) for name in ("it1-evaluation", "report")]
    del slurm.jobs[failed]
    slurm.jobs |= {maker: slurm.jobs[maker]._replace(reason="DependencyNeverSatisfied") for maker in doomed}
    log = failed.submission.log(1)
    log.write_text("step 1\rstep 2\nout of memory [bold]\n\n")
    capsys.readouterr()
    assert print_status(slurm.sweep()) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"it1 training of method.eta=1: out of memory [bold] ({log})" in lines
    assert any(line.startswith("queued for: Priority (") for line in lines)
    assert slurm.states("it1 training") == ["queued", "failed", "queued"]
    assert slurm.states("report") == ["queued", "cancelled", "queued"]
    assert slurm.left() == {"it1-training": 1, "it1-evaluation": 1, "report": 1}


def test_saved_work_of_a_queued_job_is_not_cleaned(slurm: Slurm, capsys: Capture) -> None:
    slurm.submit()
    run, store = slurm.sweep().points[0].run, Store(slurm.place / "store")
    store.make(made := Node("it1/other", Copy(text="of another run")))
    link(slurm.place / "runs" / "other", made, store)
    (policy,) = [node for node in slurm.sweep().nodes[0] if node.name == "it1/policy"]
    work = store.path(policy).with_name(f"{policy.key}.partial-0123abcd") / "work"
    work.mkdir(parents=True)
    clean(run, confirmed=True)
    assert work.exists() and "kept: a job in the queue goes on from it" in capsys.readouterr().out
    slurm.jobs = {}
    clean(run, confirmed=True)
    assert not work.exists()
