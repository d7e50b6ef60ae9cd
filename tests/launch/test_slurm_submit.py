"""What is submitted, waited for, cancelled and submitted again, to a SLURM that is made up.

It takes as much as the test lets it, and the test says what became of that.
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
from src.kernel.record import mark_store
from src.kernel.store import Store
from src.launch.housekeeping import clean
from src.launch.slurm import client
from src.launch.slurm.arrays import OWN, Array
from src.launch.slurm.client import Queued
from src.launch.slurm.ledger import Ledger, Maker
from src.launch.slurm.status import cancel, cells, print_status
from src.launch.slurm.submit import check, plan, submit

Capture = pytest.CaptureFixture[str]
FULL = UserError("launcher: sbatch: error: QOSMaxSubmitJobPerUserLimit")


@functools.cache
def run_of(iterations: int) -> Any:
    return typed(f"iter={iterations}", "launcher=slurm")


@functools.cache
def launcher() -> Any:
    return typed_point("launcher=slurm").launcher


class Slurm:
    """A queue whose jobs end when the test says so."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch, iterations: int = 1, points: int = 3) -> None:
        self.place, self.numbers = place, itertools.count(100)
        self.iterations, self.etas = iterations, range(1, points + 1)
        self.jobs: dict[Maker, Queued] = {}
        """What has not ended."""
        self.room = 9999
        """Jobs that the queue takes."""
        self.crashes_at = "nothing"
        """The command dies at an array of this name, after SLURM has heard of it."""
        monkeypatch.setattr(client, "slurm", self._slurm)

    def _slurm(self, *words: str, stdin: str = "") -> str:
        if words[0] == "squeue":
            rows = [(*one.job.partition("_")[::2], one) for one in self.jobs.values()]
            return "".join(f"{job}|{i or 'N/A'}|{one.state}|{one.reason}|{one.token}\n" for job, i, one in rows)
        if words[0] == "scancel":
            self.jobs = {
                maker: one for maker, one in self.jobs.items() if not {one.job, one.job.partition("_")[0]} & {*words}
            }
            return ""
        submission = self.ledger.submissions[-1]
        if len(self.jobs) + len(submission.makes) > self.room:
            raise FULL
        job = str(next(self.numbers))
        for index in submission.makes:
            name = f"{job}_{index}" if len(submission.makes) > 1 else job
            self.jobs[Maker(submission, index)] = Queued(name, "PENDING", "Priority", submission.token)
        if self.crashes_at in words[-1]:
            raise KeyboardInterrupt
        return f"{job}\n"

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.place / "store")

    def job(self, name: str, index: int = 0) -> Maker:
        """The last one of an array of this name that has not ended."""
        return [maker for maker in self.jobs if (maker.submission.name, maker.index) == (name, index)][-1]

    def alive(self) -> Counter[str]:
        return Counter(maker.submission.name for maker in self.jobs)

    def state(self, **changes: str) -> None:
        """Of all jobs."""
        self.jobs = {maker: dataclasses.replace(one, **changes) for maker, one in self.jobs.items()}

    def sweep(self) -> Sweep:
        run = run_of(self.iterations)
        run = dataclasses.replace(run, store=self.place / "store", runs=self.place / "runs")
        method = [dataclasses.replace(run.method, eta=float(eta)) for eta in self.etas]
        runs = [dataclasses.replace(run, method=one) for one in method]
        return Sweep([made_point(one, [f"method.eta={i}"]) for i, one in enumerate(runs)])

    def plan(self, parts: int = 2) -> list[Array]:
        return plan(self.sweep(), parts, client.queue())[0]

    def submit(self, parts: int = 2) -> list[str]:
        """Names of what went into the queue."""
        sweep, before = self.sweep(), {*self.jobs}
        try:
            submit(*plan(sweep, parts, client.queue()), sweep, launcher())
        finally:
            names = [maker.submission.name for maker in self.jobs if maker not in before]
        return list(dict.fromkeys(names))

    def end(self, *failing: str) -> None:
        """All that is queued ends: well, but for the named and those that need what they would have made."""
        sweep, ended, self.jobs = self.sweep(), [*self.jobs], {}
        made = Counter(key for maker in ended for key in maker.makes)
        bad = {key for maker in ended if maker.submission.name in failing for key in maker.makes}
        for nodes in sweep.nodes:
            for node in nodes:
                shares = 2 if node.job == "generation" else 1
                there = all(sweep.store.has(parent) for parent in node.inputs)
                if made[node.key] >= shares and there and node.key not in bad:
                    finish(sweep, node)

    def states(self, stage: str) -> list[str]:
        return [cell.state for cell in cells(self.sweep())[stage].values()]


def finish(sweep: Sweep, node: Node) -> None:
    sweep.store.path(node).mkdir(parents=True, exist_ok=True)
    (sweep.store.path(node) / "record.json").touch()
    mark_store(sweep.store.root)


def swept(*words: str) -> Sweep:
    """Of one point."""
    return Sweep([typed_point(*words)])


def sizes(arrays: list[Array]) -> dict[str, int]:
    return {array.name: len(array.elements) for array in arrays}


ALL = {"start-setup": 1, "base-evaluation": 1, "it1-generation": 2, "null-evaluation": 1, "it1-ranking": 1}
ALL |= {"it1-reference": 1, "it1-training": 3, "it1-evaluation": 3, "report": 3}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(tmp_path, monkeypatch)


# What is submitted -------------------------------------------------------------------------------------------------


def test_the_same_command_submits_what_the_queue_did_not_take(slurm: Slurm) -> None:
    """While the first jobs are under way, for which the others then wait; nothing is submitted twice."""
    assert sizes(slurm.plan()) == ALL
    slurm.room = 11
    for names in (list(ALL)[:7], []):
        before = slurm.alive()
        with pytest.raises(UserError, match="QOSMaxSubmit.*; it1-evaluation and what follows, 6 jobs, are left$"):
            slurm.submit()
        assert list((slurm.alive() - before).keys()) == names
    arrays = slurm.plan()
    assert sizes(arrays) == {"it1-evaluation": 3, "report": 3}
    number = client.queue()[-1].job.partition("_")[0]
    assert (number, OWN) in arrays[0].waits
    slurm.jobs = {maker: job for maker, job in slurm.jobs.items() if maker.submission.name != "base-evaluation"}
    slurm.room = 9999
    assert slurm.submit() == ["base-evaluation", "it1-evaluation", "report"] and sizes(slurm.plan()) == {}


@pytest.mark.parametrize("crash", [False, True])
def test_parts_are_submitted_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: bool
) -> None:
    """Some of its parts under way, an artifact counts as under way, and what reads it would not wait for the others."""
    slurm = Slurm(tmp_path, monkeypatch, iterations=2)
    parts = ["it2-generation-part1", "it2-generation-part2"]
    names = list(sizes(slurm.plan()))
    if crash:
        slurm.crashes_at = parts[1]
        with pytest.raises(KeyboardInterrupt):
            slurm.submit()
        slurm.jobs = {maker: job for maker, job in slurm.jobs.items() if maker.submission.name != parts[1]}
    else:
        slurm.room = sum(sizes(slurm.plan())[name] for name in names[: names.index(parts[0])]) + 3
        with pytest.raises(UserError, match="it2-generation-part2 and what follows"):
            slurm.submit()
    assert not {*parts} & slurm.alive().keys()
    left = sizes(slurm.plan())
    assert [left.get(name) for name in (*parts, "report")] == [3, 3, 3]


def test_what_the_cluster_refuses_is_told_with_its_key_before_anything_is_submitted(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job of each kind is tried, with what it will ask for, and waits for nothing."""
    tried: list[str] = []

    def test_only(*words: str, stdin: str) -> str:
        assert words == ("sbatch", "--test-only")
        lines = [line[10:] for line in stdin.splitlines() if line.startswith("#SBATCH --") and "=" in line]
        options = dict(line.split("=") for line in lines)
        assert not {"array", "dependency"} & options.keys()
        tried.append(options["job-name"])
        if options["job-name"] == "it1-training":
            raise UserError("launcher: sbatch: error: Invalid account; ask the site")
        return ""

    arrays = slurm.plan()
    monkeypatch.setattr(client, "slurm", test_only)
    with pytest.raises(UserError, match="^launcher.jobs.training: sbatch: error: Invalid account; ask the site"):
        check(arrays, slurm.sweep(), launcher())
    wanted = ["start-setup", "base-evaluation", "it1-generation", "it1-ranking", "it1-reference", "it1-training"]
    assert sorted(tried) == sorted(wanted) and not slurm.ledger.submissions


def test_a_run_that_gets_longer_under_way_gets_a_report_of_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Slurm(tmp_path, monkeypatch, points=1)
    slurm.submit()
    slurm.iterations = 2
    assert slurm.submit()[-2:] == ["it2-evaluation", "report"]
    assert sizes(slurm.plan()) == {}, "nothing twice"


def test_a_submission_that_is_killed_after_sbatch_is_submitted_once(slurm: Slurm) -> None:
    """The command never learned the number of the job."""
    slurm.crashes_at = "it1-reference"
    with pytest.raises(KeyboardInterrupt):
        slurm.submit()
    slurm.crashes_at = "nothing"
    assert slurm.submit() == ["it1-training", "it1-evaluation", "report"]
    assert slurm.alive() == Counter(ALL)


def test_a_benchmark_that_others_have_made_already_gets_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is missing but that: `status` calls it left, and it is submitted."""
    monkeypatch.setattr(client, "slurm", lambda *words: "")
    words = ("iter=1", f"store={tmp_path}/store", f"runs={tmp_path}/runs", "launcher=slurm")
    plain, more = swept(*words), swept(*words, "benchmark=win_matrix")
    for node in more.nodes[0]:
        finish(more, node)
    (point,) = plain.points
    point.folder.mkdir(parents=True)
    files = {"config.yaml": point.settings, "command.txt": "", "report.md": "without it", "summary.txt": ""}
    for name, content in files.items():
        (point.folder / name).write_text(content)
    plain = swept(*words)
    assert [cells(one)["report"][0].state for one in (plain, more)] == ["done", "left"]
    assert [sizes(plan(one, 2, [])[0]) for one in (plain, more)] == [{}, {"report": 1}]


def test_jobs_of_others_with_the_same_numbers_are_not_ours(slurm: Slurm) -> None:
    """Of another cluster with the same store, or of one that counts from the beginning again."""
    slurm.submit()
    assert slurm.plan() == [], "everything is under way"
    slurm.state(token="another")
    assert sizes(slurm.plan()) == ALL


# Jobs that are cancelled, or died while others go on ---------------------------------------------------------------


def test_a_cancelled_job_that_still_saves_is_submitted_again(slurm: Slurm, capsys: Capture) -> None:
    slurm.submit()
    before = slurm.jobs
    cancel(slurm.sweep())
    assert slurm.jobs == {} and capsys.readouterr().out.splitlines()[-1] == f"{len(before)} jobs cancelled"
    cancel(slurm.sweep())
    assert capsys.readouterr().out == "none of it is queued or running\n"
    slurm.jobs = before
    slurm.state(state="COMPLETING")
    assert sizes(slurm.plan()) == ALL
    assert {cell.state for row in cells(slurm.sweep()).values() for cell in row.values()} == {"cancelled"}


def test_what_others_wait_for_goes_on(slurm: Slurm, capsys: Capture) -> None:
    """Of three points, one is cancelled: its training, evaluation and report end, and what all share goes on. So does
    what another sweep of one more point waits for, at any distance, when all three are.
    """
    slurm.submit()
    slurm.etas = range(1, 2)
    cancel(slurm.sweep())
    assert slurm.alive() == Counter(ALL) - Counter(["it1-training", "it1-evaluation", "report"])
    assert [maker.index for maker in slurm.jobs if maker.submission.name == "report"] == [1, 2]
    shared = len(ALL) - 3 + 1  # two shares of answers
    assert capsys.readouterr().out.splitlines()[-1] == f"3 jobs cancelled; {shared} go on, for others wait for them"
    slurm.etas = range(4, 5)
    slurm.submit()
    slurm.etas = range(1, 4)
    cancel(slurm.sweep())
    assert capsys.readouterr().out.splitlines()[-1] == f"6 jobs cancelled; {shared} go on, for others wait for them"
    assert len(slurm.jobs) == shared + 3
    slurm.etas = range(4, 5)
    slurm.end()
    assert sizes(slurm.plan()) == {"report": 1}, "its report is no artifact"


def test_while_a_share_goes_on_its_artifact_is_under_way_and_afterwards_all_shares_are_submitted(slurm: Slurm) -> None:
    slurm.submit()
    first = slurm.job("it1-generation", 0)
    del slurm.jobs[first]
    assert slurm.states("it1 generation") == ["queued"] * 3 and sizes(slurm.plan()) == {}
    slurm.jobs = {}
    first.submission.log(0).write_text("out of memory")
    assert slurm.states("it1 generation") == ["failed"] * 3 and slurm.states("it1 ranking") == ["cancelled"] * 3
    assert sizes(slurm.plan()) == ALL


def test_status_shows_the_last_line_of_a_failed_job_and_what_others_wait_for(slurm: Slurm, capsys: Capture) -> None:
    """What waits for a job that has just failed has failed too: SLURM cancels it in its next round."""
    slurm.submit()
    failed, doomed = slurm.job("it1-training", 1), [slurm.job(name, 1) for name in ("it1-evaluation", "report")]
    del slurm.jobs[failed]
    slurm.jobs |= {one: dataclasses.replace(slurm.jobs[one], reason="DependencyNeverSatisfied") for one in doomed}
    log = failed.submission.log(1)
    log.write_text("step 1\rstep 2\nout of memory [bold]\n\n")
    capsys.readouterr()
    assert print_status(slurm.sweep()) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"it1 training of method.eta=1: out of memory [bold] ({log})" in lines
    assert any(line.startswith("queued for: Priority (") for line in lines)
    assert slurm.states("it1 training") == ["queued", "failed", "queued"]
    assert slurm.states("report") == ["queued", "cancelled", "queued"]
    assert sizes(slurm.plan()) == {"it1-training": 1, "it1-evaluation": 1, "report": 1}


def test_saved_work_of_a_queued_job_is_not_cleaned(slurm: Slurm, capsys: Capture) -> None:
    slurm.submit()
    run = slurm.sweep().points[0].run
    (node,) = [node for node in slurm.sweep().nodes[0] if node.name == "it1/policy"]
    mark_store(slurm.place / "store")
    work = slurm.place / "store" / node.stage.kind / f"{node.key}.partial-0123abcd" / "work"
    work.mkdir(parents=True)
    locks = slurm.place / "store/.locks"
    locks.mkdir(exist_ok=True)
    (locks / f"{node.stage.kind}-{node.key}.lock").touch()
    store, made = Store(slurm.place / "store"), Node("it1/other", Copy(text="of another run"))
    store.make(made)
    link(slurm.place / "runs" / "other", made, store)
    clean(run, confirmed=True)
    assert work.exists() and "kept: a job in the queue goes on from it" in capsys.readouterr().out
    slurm.jobs = {}
    clean(run, confirmed=True)
    assert not work.exists()


def test_what_is_set_up_here_is_no_job(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    words = tiny(llama, tmp_path, "iter=1", "launcher=slurm", "launcher.site.setup_here=true")
    monkeypatch.setattr(client, "slurm", lambda *words, stdin="": {"squeue": "", "sbatch": "7\n"}[words[0]])
    wanted = [node for node in swept(*words).to_make() if node.job == SETUP]
    assert call("plan", *words) == 0 and not (tmp_path / "store").exists()
    assert "start-setup" not in capsys.readouterr().out
    assert wanted and call(*words) == 0
    assert all(swept(*words).store.has(node) for node in wanted)
    names = [one.name for one in Ledger(tmp_path / "store").submissions]
    assert names and not any("setup" in name for name in names)
