"""What is submitted, waited for, cancelled and submitted again, to a SLURM that is made up.

It takes everything, and the test says what became of it.
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

from src.experiment.links import link
from src.experiment.sweep import Sweep
from src.experiment.tasks import SETUP
from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.kernel.store import Store
from src.launch.housekeeping import clean
from src.launch.slurm import client
from src.launch.slurm.client import Limits, Queued
from src.launch.slurm.ledger import Ledger, Maker, Submission, mark
from src.launch.slurm.status import cancel, cells, print_status
from src.launch.slurm.submit import Plan, check, plan, submit

Capture = pytest.CaptureFixture[str]
ROOMY = Limits(1001, 9999)


@functools.cache
def run_of(iterations: int) -> Any:
    return typed(f"iter={iterations}", "launcher=slurm")


class Slurm:
    """A queue whose jobs end when the test says so."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch, iterations: int = 1, points: int = 3) -> None:
        self.place, self.numbers = place, itertools.count(100)
        self.iterations, self.etas = iterations, range(1, points + 1)
        self.tokens: dict[str, str] = {}
        self.alive: set[str] = set()
        self.crashes_at, self.crashes_late = "nothing", False
        """The command dies at an array of this name: before SLURM hears of it, or after."""
        monkeypatch.setattr(client, "slurm", self._slurm)

    def _slurm(self, *words: str, stdin: str = "") -> str:
        if words[0] == "squeue":
            rows = [(one, "N/A" if one.index is None else one.index) for one in self.queue()]
            return "".join(f"{q.job.partition('_')[0]}|{index}|{q.state}|None|{q.token}\n" for q, index in rows)
        if words[0] == "scancel":
            self.alive -= set(words[1:])
            return ""
        if self.crashes_at in words[-1] and not self.crashes_late:
            raise KeyboardInterrupt
        job, token = str(next(self.numbers)), words[-1].rpartition("-")[2].partition(".")[0]
        self.tokens[job] = token
        submission = dataclasses.replace(self.ledger.submissions[token], job=job)
        self.alive |= {Maker(submission, index).job for index in submission.elements}
        if self.crashes_at in words[-1]:
            raise KeyboardInterrupt
        return job

    @property
    def ledger(self) -> Ledger:
        return Ledger.of(self.place / "store")

    def queue(self) -> list[Queued]:
        return [Queued(job, "PENDING", "None", self.tokens[job.partition("_")[0]]) for job in sorted(self.alive)]

    def last(self, name: str) -> Submission:
        """The last submission of this name."""
        return [one for one in self.ledger.submissions.values() if one.name == name][-1]

    def job(self, name: str, index: int) -> str:
        return Maker(self.last(name), index).job

    def done(self, name: str, index: int) -> None:
        """A share leaves its mark."""
        (self.place / "store" / ".jobs" / mark(self.last(name).token, index)).touch()

    def sweep(self) -> Sweep:
        run = run_of(self.iterations)
        run = dataclasses.replace(run, store=self.place / "store", runs=self.place / "runs")
        method = [dataclasses.replace(run.method, eta=float(eta)) for eta in self.etas]
        runs = [dataclasses.replace(run, method=one) for one in method]
        return Sweep([made_point(one, [f"method.eta={i}"]) for i, one in enumerate(runs)])

    def plan(self, limits: Limits = ROOMY, parts: int = 2) -> Plan:
        return plan(self.sweep(), self.ledger, parts, self.queue(), limits)

    def submit(self, planned: Plan | None = None) -> list[str]:
        """Names of what went into the queue."""
        before = len(self.ledger.submissions)
        submit(planned or self.plan(), self.ledger, jobs())
        return [one.name for one in list(self.ledger.submissions.values())[before:] if one.job]

    def end(self, *failing: str) -> None:
        """All that is queued ends: well, but for the named and those that need what they would have made."""
        sweep, ended = self.sweep(), [maker for maker in self.ledger.elements() if maker.job in self.alive]
        made = Counter(key for maker in ended for key in maker.makes)
        bad = {key for maker in ended if maker.submission.name in failing for key in maker.makes}
        for maker in ended:
            if maker.submission.name not in failing and "generation" in maker.submission.name:
                (self.ledger.file.parent / mark(maker.submission.token, maker.index)).touch()
        for nodes in sweep.nodes:
            for node in nodes:
                shares = 2 if node.job == "generation" else 1
                there = all(sweep.store.has(parent) for parent in node.inputs)
                if made[node.key] >= shares and there and node.key not in bad:
                    finish(sweep, node)
        self.alive = set()


def jobs() -> Any:
    launcher: Any = typed_point("launcher=slurm").launcher
    return launcher._jobs()


def finish(sweep: Sweep, node: Node) -> None:
    sweep.store.path(node).mkdir(parents=True, exist_ok=True)
    (sweep.store.path(node) / "record.json").touch()


def swept(*words: str) -> Sweep:
    """Of one point."""
    return Sweep([typed_point(*words)])


def sizes(planned: Plan) -> dict[str, int]:
    return {array.name: len(array.elements) for array in planned.arrays}


ALL = {"start-setup": 1, "base-evaluation": 1, "it1-generation": 2, "null-evaluation": 1, "it1-ranking": 1}
ALL |= {"it1-reference": 1, "it1-training": 3, "it1-evaluation": 3, "report": 3}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(tmp_path, monkeypatch)


# A queue that takes only some --------------------------------------------------------------------------------------


def test_the_same_command_submits_what_the_queue_did_not_take(slurm: Slurm, capsys: Capture) -> None:
    """While the first jobs are under way, for which the others then wait; nothing is submitted twice."""
    planned = slurm.plan(limits=Limits(1001, 11))
    assert sizes(planned) == ALL and planned.room == 11
    assert slurm.submit(planned) == list(ALL)[:7]
    left = "it1-evaluation is 3 jobs, but the queue takes 1 more of yours; it and what follows, 6 jobs, are left: "
    assert capsys.readouterr().out.splitlines()[-1].startswith(left)
    with pytest.raises(UserError, match="^launcher: it1-evaluation.* the queue takes 1 more of yours; give the comm"):
        slurm.submit(slurm.plan(limits=Limits(1001, 11)))
    planned = slurm.plan()
    assert sizes(planned) == {"it1-evaluation": 3, "report": 3}
    assert f"{slurm.last('it1-training').job}_%" in planned.arrays[0].running
    slurm.end("base-evaluation")
    assert sizes(slurm.plan()) == {"base-evaluation": 1, "it1-evaluation": 3, "report": 3}


def test_shares_that_the_queue_can_never_take_are_refused(slurm: Slurm) -> None:
    with pytest.raises(UserError, match="^launcher.parts: it1-generation is 11 jobs that go together; the queue takes"):
        slurm.submit(slurm.plan(parts=11, limits=Limits(1001, 10)))


def test_what_the_cluster_refuses_is_told_with_its_key_before_anything_is_submitted(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job of each kind is tried, with what it will ask for, and waits for nothing."""
    tried: list[str] = []

    def test_only(*words: str, stdin: str) -> str:
        assert words == ("sbatch", "--test-only")
        options = dict(
            line[10:].split("=") for line in stdin.splitlines() if line.startswith("#SBATCH --") and "=" in line
        )
        assert not {"array", "dependency"} & options.keys()
        tried.append(options["job-name"])
        if options["job-name"] == "it1-training":
            raise UserError("launcher: sbatch: error: Invalid account; ask the site")
        return ""

    monkeypatch.setattr(client, "slurm", test_only)
    with pytest.raises(UserError, match="^launcher.jobs.training: sbatch: error: Invalid account; ask the site"):
        check(slurm.plan(), jobs())
    wanted = ["start-setup", "base-evaluation", "it1-generation", "it1-ranking", "it1-reference", "it1-training"]
    assert sorted(tried) == sorted(wanted) and not slurm.ledger.submissions


def test_parts_are_submitted_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of its parts under way, an artifact counts as under way, and what reads it would not wait for the others."""
    planned = Slurm(tmp_path / "chunks", monkeypatch).plan(parts=9, limits=Limits(4, 9999))
    assert [len(array.elements) for array in planned.arrays if array.name == "it1-generation"] == [4, 4, 1]
    assert len({array.group for array in planned.arrays if array.name == "it1-generation"}) == 1
    slurm = Slurm(tmp_path, monkeypatch, iterations=2)
    names = list(sizes(slurm.plan()))
    assert {"it2-generation-part1", "it2-generation-part2"} <= set(names)
    before = sum(sizes(slurm.plan())[name] for name in names[: names.index("it2-generation-part1")])
    submitted = slurm.submit(slurm.plan(limits=Limits(1001, before + 3)))
    assert submitted and "it2-generation-part1" not in submitted
    slurm.end()
    left, wanted = sizes(slurm.plan()), ("it2-generation-part1", "it2-generation-part2", "report")
    assert [left.get(name) for name in wanted] == [3, 3, 3]


def test_a_crash_between_two_parts_leaves_nobody_waiting_for_one_of_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part that is in the queue is ended and submitted again with the other."""
    slurm = Slurm(tmp_path, monkeypatch, iterations=2)
    slurm.crashes_at = "it2-generation-part2"
    with pytest.raises(KeyboardInterrupt):
        slurm.submit()
    planned, parts = slurm.plan(), ("it2-generation-part1", "it2-generation-part2")
    assert [sizes(planned).get(name) for name in parts] == [3, 3]
    assert planned.superseded == [slurm.job(parts[0], index) for index in range(3)]


def test_a_run_that_gets_longer_under_way_gets_a_report_of_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Slurm(tmp_path, monkeypatch, points=1)
    slurm.submit()
    slurm.iterations = 2
    planned = slurm.plan()
    assert list(sizes(planned))[-2:] == ["it2-evaluation", "report"]
    slurm.submit(planned)
    assert sizes(slurm.plan()) == {}, "nothing twice"


def test_a_submission_that_was_cut_off_submits_the_rest(slurm: Slurm) -> None:
    """The queue has an array, and the ledger does not know its job."""
    slurm.crashes_at, slurm.crashes_late = "it1-reference", True
    with pytest.raises(KeyboardInterrupt):
        slurm.submit()
    queued = Counter(slurm.tokens[job.partition("_")[0]] for job in slurm.alive)
    slurm.crashes_at = "nothing"
    ledger = slurm.ledger
    ledger.adopt(slurm.queue())
    planned = slurm.plan()
    assert sizes(planned) == {name: ALL[name] for name in ("it1-training", "it1-evaluation", "report")}
    slurm.submit(planned)
    assert len(slurm.alive) == sum(ALL.values()) and queued.keys() < set(slurm.tokens.values())


def test_a_benchmark_that_others_have_made_already_gets_its_report(tmp_path: Path) -> None:
    """Nothing is missing but that: `status` calls it left, and it is submitted."""
    words = ("iter=1", f"store={tmp_path}/store", f"runs={tmp_path}/runs", "launcher=slurm")

    def state(sweep: Sweep) -> str:
        return cells(sweep, Ledger.of(sweep.store.root), [])["report"][0].state

    plain, more = swept(*words), swept(*words, "benchmark=win_matrix")
    for node in more.nodes[0]:
        finish(more, node)
    (point,) = plain.points
    point.folder.mkdir(parents=True)
    files = {"config.yaml": point.settings, "command.txt": "", "report.md": "without it", "summary.txt": ""}
    for name, content in files.items():
        (point.folder / name).write_text(content)
    plain = swept(*words)
    assert (state(plain), state(more)) == ("done", "left")
    planned = [plan(one, Ledger.of(one.store.root), 2, [], ROOMY) for one in (plain, more)]
    assert [sizes(one) for one in planned] == [{}, {"report": 1}]


def test_jobs_of_others_with_the_same_numbers_are_not_ours(slurm: Slurm) -> None:
    """Of another cluster with the same store, or of one that counts from the beginning again."""
    slurm.submit()
    assert slurm.plan().arrays == [], "everything is under way"
    slurm.tokens = dict.fromkeys(slurm.tokens, "another")
    assert sizes(slurm.plan()) == ALL


def test_shares_of_many_points_are_groups_that_the_queue_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = Slurm(tmp_path, monkeypatch, iterations=2, points=30)
    planned = slurm.plan(parts=4, limits=Limits(1001, 50))
    groups = Counter[int]()
    for array in planned.arrays:
        groups[array.group] += len(array.elements)
    assert max(groups.values()) == 48 <= planned.most


# Jobs that are cancelled, or died while others go on ---------------------------------------------------------------


def test_cancel_finds_a_job_whose_submission_was_cut_off(slurm: Slurm, capsys: Capture) -> None:
    slurm.crashes_at, slurm.crashes_late = "it1-training", True
    with pytest.raises(KeyboardInterrupt):
        slurm.submit()
    assert slurm.ledger.cut() and len(slurm.alive) == 10
    cancel(slurm.sweep())
    assert slurm.alive == set() and capsys.readouterr().out.splitlines()[-1] == "10 jobs cancelled"
    cancel(slurm.sweep())
    assert capsys.readouterr().out == "none of it is queued or running\n"


def test_a_cancelled_job_that_still_saves_is_submitted_again(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm.submit()
    queue = slurm.queue()
    cancel(slurm.sweep())
    monkeypatch.setattr(slurm, "queue", lambda: [dataclasses.replace(one, state="COMPLETING") for one in queue])
    assert sizes(slurm.plan()) == ALL
    table = cells(slurm.sweep(), slurm.ledger, slurm.queue()).values()
    assert {cell.state for row in table for cell in row.values()} == {"cancelled"}


def test_what_others_wait_for_goes_on(slurm: Slurm, capsys: Capture) -> None:
    """Of three points, one is cancelled: its training, evaluation and report end, and what all share goes on. So does
    what another sweep of one more point waits for, at any distance, when all three are.
    """
    slurm.submit()
    slurm.etas = range(1, 2)
    cancel(slurm.sweep())
    for name in ("it1-training", "it1-evaluation", "report"):
        assert [slurm.job(name, index) in slurm.alive for index in range(3)] == [False, True, True], name
    shared = len(ALL) - 3 + 1  # two shares of answers
    assert capsys.readouterr().out.splitlines()[-1] == f"3 jobs cancelled; {shared} go on, for others wait for them"
    slurm.etas = range(4, 5)
    slurm.submit()
    slurm.etas = range(1, 4)
    cancel(slurm.sweep())
    assert capsys.readouterr().out.splitlines()[-1] == f"6 jobs cancelled; {shared} go on, for others wait for them"
    assert len(slurm.alive) == shared + 3
    slurm.etas = range(4, 5)
    slurm.end()
    assert sizes(slurm.plan()) == {"report": 1}, "its report is no artifact"


def test_a_share_that_died_is_known_though_others_go_on(slurm: Slurm) -> None:
    slurm.submit()
    slurm.alive.remove(slurm.job("it1-generation", 0))
    table = cells(slurm.sweep(), slurm.ledger, slurm.queue())
    assert table["it1 generation"][0].state == "cancelled" and table["it1 ranking"][0].state == "queued"
    planned = slurm.plan()
    assert sizes(planned) == {"it1-generation": 2}
    (other,) = planned.superseded
    assert other in slurm.alive
    slurm.submit(planned)
    assert other not in slurm.alive


def test_status_tells_the_last_line_of_a_failed_job_and_what_others_wait_for(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    slurm.submit()
    slurm.alive.remove(slurm.job("it1-training", 1))
    log = Maker(slurm.last("it1-training"), 1).log
    log.write_text("step 1\rstep 2\nout of memory [bold]\n\n")
    queue = [dataclasses.replace(job, reason="Priority") for job in slurm.queue()]
    monkeypatch.setattr(client, "queue", lambda: queue)
    capsys.readouterr()
    assert print_status(slurm.sweep()) == 1
    text = "".join(capsys.readouterr().out.split())
    assert "stage│method.eta=0│method.eta=1│method.eta=2│" in text.replace("┃", "│")
    job = slurm.job("it1-training", 1)
    assert f"it1training,method.eta=1:job{job}:outofmemory[bold]({log})`retry`withthesamewords" in text
    assert "queuedfor:Priority(" in text


def test_a_share_that_is_done_leaves_a_mark(slurm: Slurm) -> None:
    slurm.submit()
    slurm.alive.remove(slurm.job("it1-generation", 0))
    slurm.done("it1-generation", 0)
    assert sizes(slurm.plan()) == {}
    assert cells(slurm.sweep(), slurm.ledger, slurm.queue())["it1 generation"][0].state == "queued"


def test_what_waits_for_a_job_that_has_just_failed_is_failed_too(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM cancels it in its next round."""
    slurm.submit()
    doomed = {slurm.job(name, 1) for name in ("it1-evaluation", "report")}
    slurm.alive.remove(slurm.job("it1-training", 1))
    queue = slurm.queue()
    doom = [dataclasses.replace(q, reason="DependencyNeverSatisfied") if q.job in doomed else q for q in queue]
    monkeypatch.setattr(slurm, "queue", lambda: doom)
    assert sizes(slurm.plan()) == {"it1-training": 1, "it1-evaluation": 1, "report": 1}


def test_saved_work_of_a_queued_job_is_not_cleaned(slurm: Slurm, capsys: Capture) -> None:
    slurm.submit()
    run = slurm.sweep().points[0].run
    (node,) = [node for node in slurm.sweep().nodes[0] if node.name == "it1/policy"]
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
    slurm.alive = set()
    clean(run, confirmed=False)
    assert "saved work of a job; `retry` would go on from it" in capsys.readouterr().out
    clean(run, confirmed=True)
    assert not work.exists()


# What is set up where the command is given -------------------------------------------------------------------------


def test_what_is_set_up_here_is_no_job_and_is_not_cleaned(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    words = tiny(llama, tmp_path, "iter=1", "launcher=slurm", "launcher.site.setup_here=true")
    answers = {"squeue": "", "scontrol": "MaxArraySize = 9\nMaxJobCount = 99\n", "sbatch": "7\n"}
    monkeypatch.setattr(client, "slurm", lambda *words, stdin="": answers[words[0]])
    wanted = [node for node in swept(*words).to_make() if node.job == SETUP]
    assert call("plan", *words) == 0 and not (tmp_path / "store").exists()
    assert "start-setup" not in capsys.readouterr().out
    assert wanted and call(*words) == 0
    sweep = swept(*words)
    assert all(sweep.store.has(node) for node in wanted)
    names = [one.name for one in Ledger.of(tmp_path / "store").submissions.values()]
    assert names and not any("setup" in name for name in names)
    clean(sweep.points[0].run, confirmed=True)
    assert all(sweep.store.has(node) for node in wanted)
