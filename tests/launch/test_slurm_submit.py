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
from src.launch.slurm.ledger import Ledger, Submission
from src.launch.slurm.setup_here import missing_setup, set_up
from src.launch.slurm.show import cancel, cells
from src.launch.slurm.submit import REST, Plan, Wish, plan, submit

Capture = pytest.CaptureFixture[str]
ROOMY = Limits(1001, None)


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

    def _slurm(self, *words: str) -> str:
        if words[0] == "squeue":
            rows = [(one, "N/A" if one.index is None else one.index) for one in self.queue()]
            return "".join(f"{q.job.partition('_')[0]}|{index}|{q.state}|None|{q.token}\n" for q, index in rows)
        if words[0] == "scancel":
            self.alive -= set(words[1:])
            return ""
        if self.crashes_at in words[-1] and not self.crashes_late:
            raise KeyboardInterrupt
        job, token = str(next(self.numbers)), words[-1].rpartition("-")[2].partition(".")[0]
        (told,) = [one for one in self.ledger.submissions.values() if one.token == token]
        self.alive |= {f"{job}_{index}" if len(told.elements) > 1 else job for index in told.elements}
        self.tokens[job] = token
        if self.crashes_at in words[-1]:
            raise KeyboardInterrupt
        return job

    @property
    def ledger(self) -> Ledger:
        return Ledger.of(self.place / "store")

    def queue(self) -> list[Queued]:
        return [Queued(job, "PENDING", "None", self.tokens[job.partition("_")[0]]) for job in sorted(self.alive)]

    def told(self, name: str) -> Submission:
        """The last of this name."""
        return [told for told in self.ledger.submissions.values() if told.name == name][-1]

    def sweep(self) -> Sweep:
        run = run_of(self.iterations)
        run = dataclasses.replace(run, store=self.place / "store", runs=self.place / "runs")
        method = [dataclasses.replace(run.method, eta=float(eta)) for eta in self.etas]
        runs = [dataclasses.replace(run, method=one) for one in method]
        return Sweep([made_point(one, [f"method.eta={i}"]) for i, one in enumerate(runs)])

    def plan(self, again: bool = True, only_failed: bool = False, limits: Limits = ROOMY, parts: int = 2) -> Plan:
        return plan(self.sweep(), self.ledger, Wish(parts, again, only_failed), self.queue(), limits)

    def submit(self, planned: Plan) -> list[str]:
        """Names of what went into the queue."""
        launcher: Any = typed_point("launcher=slurm").launcher
        before = len(self.ledger.submissions)
        submit(planned, self.ledger, launcher._jobs(), ["-m", "x"])
        return [told.name for told in list(self.ledger.submissions.values())[before:] if told.job]

    def end(self, *failing: str) -> None:
        """All that is queued ends: well, but for the named and those that need what they would have made."""
        sweep, ended = self.sweep(), self.alive
        told = [one for one in self.ledger.submissions.values() if one.name != REST]
        made = Counter(k for one in told for i, keys in one.elements.items() for k in keys if one.element(i) in ended)
        for one in told:
            for index in one.elements:
                if one.name not in failing and one.element(index) in ended and "generation" in one.name:
                    self.ledger.mark(one, index).touch()
        bad = {key for one in told if one.name in failing for keys in one.elements.values() for key in keys}
        for nodes in sweep.nodes:
            for node in nodes:
                parts = 2 if node.job == "generation" else 1
                there = all(sweep.store.has(parent) for parent in node.inputs)
                if made[node.key] >= parts and there and node.key not in bad:
                    finish(sweep, node)
        self.alive = set()


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


def test_what_the_queue_takes_is_submitted_and_a_job_for_the_rest(slurm: Slurm) -> None:
    planned = slurm.plan(limits=Limits(1001, 11))
    assert sizes(planned) == ALL and planned.room == 10, "as many as the first seven arrays have"
    assert slurm.submit(planned) == [*list(ALL)[:7], "rest"]
    rest = slurm.told("rest")
    others = [told.job for told in slurm.ledger.submissions.values() if told.name != "rest" and told.job]
    assert rest.after == f"afterany:{':'.join(map(str, others))}"
    slurm.end()
    assert sizes(slurm.plan(again=False)) == {name: ALL[name] for name in ("it1-evaluation", "report")}


def test_what_failed_is_not_submitted_again_by_the_rest_and_what_needs_it_neither(slurm: Slurm) -> None:
    slurm.submit(slurm.plan(limits=Limits(1001, 12)))
    slurm.end("base-evaluation")
    assert sizes(slurm.plan(again=False)) == {}
    assert sizes(slurm.plan()) == {"base-evaluation": 1, "it1-evaluation": 3, "report": 3}


def test_a_queue_that_takes_nothing_is_told_in_one_line(slurm: Slurm) -> None:
    with pytest.raises(UserError, match="^launcher.parts: it1-generation is 11 jobs that go together, and the queue"):
        slurm.submit(slurm.plan(parts=11, limits=Limits(1001, 12)))
    slurm.submit(slurm.plan(limits=Limits(1001, 12)))
    with pytest.raises(UserError, match="it1-evaluation-1 is 1 jobs, but the queue takes 0 more of yours") as error:
        slurm.submit(slurm.plan(limits=Limits(1001, 12)))
    assert "\n" not in str(error.value)


def test_parts_are_submitted_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of its parts under way, an artifact counts as under way, and what reads it would not wait for the others."""
    planned = Slurm(tmp_path / "chunks", monkeypatch).plan(parts=9, limits=Limits(4, None))
    assert [len(array.elements) for array in planned.arrays if array.name == "it1-generation"] == [4, 4, 1]
    assert len({array.group for array in planned.arrays if array.name == "it1-generation"}) == 1
    slurm = Slurm(tmp_path, monkeypatch, iterations=2)
    names = list(sizes(slurm.plan()))
    assert {"it2-generation-part1", "it2-generation-part2"} <= set(names)
    before = sum(sizes(slurm.plan())[name] for name in names[: names.index("it2-generation-part1")])
    submitted = slurm.submit(slurm.plan(limits=Limits(1001, before + 3 + 1)))
    assert "it2-generation-part1" not in submitted and submitted[-1] == "rest"
    slurm.end()
    left, wanted = sizes(slurm.plan(again=False)), ("it2-generation-part1", "it2-generation-part2", "report")
    assert [left.get(name) for name in wanted] == [3, 3, 3]


def test_a_crash_between_two_parts_leaves_nobody_waiting_for_one_of_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Slurm(tmp_path, monkeypatch, iterations=2)
    slurm.crashes_at = "it2-generation-part2"
    with pytest.raises(KeyboardInterrupt):
        slurm.submit(slurm.plan())
    slurm.crashes_at = "nothing"
    left = slurm.plan().arrays
    answers = [array for array in left if array.job == "generation"]
    second = {array: {e.task.point for e in array.elements.values() if e.part == 1} for array in answers}
    assert set.union(*second.values()) >= {0, 1, 2}
    for array in left:
        if array.job == "ranking":
            waited = {*array.matched, *(other for other, _ in array.named)}
            points = {element.task.point for element in array.elements.values()}
            assert points <= {point for other in waited for point in second.get(other, ())}


def test_retry_of_what_failed_while_something_else_was_never_submitted(slurm: Slurm) -> None:
    """An evaluation of the base failed, and the trainings that its reader waits for too are still to be submitted."""
    planned = slurm.plan()
    slurm.submit(dataclasses.replace(planned, arrays=planned.arrays[: list(ALL).index("it1-training")]))
    slurm.end("base-evaluation")
    assert "base-evaluation" in sizes(slurm.plan(only_failed=True))


def test_a_run_that_gets_longer_under_way_gets_a_report_of_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Slurm(tmp_path, monkeypatch, points=1)
    slurm.submit(slurm.plan())
    slurm.iterations = 2
    planned = slurm.plan()
    assert list(sizes(planned))[-2:] == ["it2-evaluation", "report"]
    slurm.submit(planned)
    assert sizes(slurm.plan()) == {}, "nothing twice"


def test_a_submission_that_was_cut_off_submits_the_rest(slurm: Slurm) -> None:
    """The queue has an array, and the ledger does not know its job."""
    slurm.crashes_at, slurm.crashes_late = "it1-reference", True
    with pytest.raises(KeyboardInterrupt):
        slurm.submit(slurm.plan())
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
    planned = [plan(one, Ledger.of(one.store.root), Wish(2, True), [], ROOMY) for one in (plain, more)]
    assert [sizes(one) for one in planned] == [{}, {"report": 1}]


def test_jobs_of_others_with_the_same_numbers_are_not_ours(slurm: Slurm) -> None:
    """Of another cluster with the same store, or of one that counts from the beginning again."""
    slurm.submit(slurm.plan())
    assert slurm.plan().arrays == slurm.plan(only_failed=True).arrays == [], "everything is under way"
    slurm.tokens = dict.fromkeys(slurm.tokens, "another")
    assert sizes(slurm.plan()) == ALL


def test_the_job_for_the_rest_waits_for_a_queue_that_others_fill(slurm: Slurm) -> None:
    slurm.submit(slurm.plan(limits=Limits(1001, 12)))
    slurm.end()
    planned = slurm.plan(again=False, limits=Limits(1001, 1001, free=1))
    assert slurm.submit(planned) == ["rest"]
    rest = slurm.told("rest")
    assert rest.after == "" and "#SBATCH --begin=now+10minutes\n" in rest.script.read_text()
    slurm.end()
    assert sizes(slurm.plan(again=False)) == {name: ALL[name] for name in ("it1-evaluation", "report")}


def test_shares_of_many_points_are_groups_that_the_queue_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = Slurm(tmp_path, monkeypatch, iterations=2, points=30)
    planned = slurm.plan(parts=4, limits=Limits(1001, 50))
    groups = Counter[int]()
    for array in planned.arrays:
        groups[array.group] += len(array.elements)
    assert max(groups.values()) == 48 == planned.largest


# Jobs that are cancelled, or died while others go on ---------------------------------------------------------------


def test_cancel_ends_the_job_for_the_rest_too(slurm: Slurm, capsys: Capture) -> None:
    """It waits for all of them, and would submit the rest of what is not wanted any more. A job whose submission was
    cut off is found by its token.
    """
    slurm.submit(slurm.plan(limits=Limits(1001, 12)))
    assert len(slurm.alive) == 11
    lines = slurm.ledger.file.read_text().splitlines()
    slurm.ledger.file.write_text("\n".join(line for line in lines if '"job"' not in line or '"rest"' in line))
    cancel(slurm.sweep())
    assert slurm.alive == set() and capsys.readouterr().out.splitlines()[-1] == "11 jobs cancelled"


def test_a_cancelled_job_that_still_saves_is_submitted_again(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm.submit(slurm.plan())
    queue = slurm.queue()
    cancel(slurm.sweep())
    monkeypatch.setattr(slurm, "queue", lambda: [dataclasses.replace(one, state="COMPLETING") for one in queue])
    assert sizes(slurm.plan(only_failed=True)) == ALL
    assert sizes(slurm.plan(again=False)) == {}
    found = cells(slurm.sweep(), slurm.ledger, slurm.queue()).values()
    assert {cell.state for row in found for cell in row.values()} == {"cancelled"}


def test_others_keep_the_job_for_their_rest_and_what_is_cancelled_is_not_submitted_by_it(
    slurm: Slurm, capsys: Capture
) -> None:
    slurm.submit(slurm.plan(limits=Limits(1001, 12)))
    rest = slurm.told("rest")
    slurm.etas = range(1, 2)
    cancel(slurm.sweep())
    assert rest.element(0) in slurm.alive
    told = slurm.told("it1-training")
    assert [told.element(index) in slurm.alive for index in range(3)] == [False, True, True]
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "1 jobs cancelled; 7 go on, for others wait for them"
    slurm.etas = range(1, 4)
    slurm.end()
    left = slurm.plan(again=False).arrays
    assert {element.task.point for array in left for element in array.elements.values()} == {1, 2}


def die(slurm: Slurm, name: str, index: int) -> None:
    slurm.alive.remove(slurm.told(name).element(index))


def test_a_share_that_died_is_known_though_others_go_on(slurm: Slurm) -> None:
    slurm.submit(slurm.plan())
    die(slurm, "it1-generation", 0)
    found = cells(slurm.sweep(), slurm.ledger, slurm.queue())
    assert found["it1 generation"][0].state == "cancelled" and found["it1 ranking"][0].state == "queued"
    planned = slurm.plan(only_failed=True)
    assert sizes(planned) == {"it1-generation": 2}
    other = planned.useless
    assert len(other) == 1 and other[0] in slurm.alive
    slurm.submit(planned)
    assert other[0] not in slurm.alive


def test_a_share_that_is_done_leaves_a_mark(slurm: Slurm) -> None:
    slurm.submit(slurm.plan())
    die(slurm, "it1-generation", 0)
    slurm.ledger.mark(slurm.told("it1-generation"), 0).touch()
    assert sizes(slurm.plan()) == {}
    assert cells(slurm.sweep(), slurm.ledger, slurm.queue())["it1 generation"][0].state == "queued"


def test_what_waits_for_a_job_that_has_just_failed_is_failed_too(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM cancels it in its next round."""
    slurm.submit(slurm.plan())
    doomed = {slurm.told(name).element(1) for name in ("it1-evaluation", "report")}
    die(slurm, "it1-training", 1)
    queue = slurm.queue()
    doom = [dataclasses.replace(q, reason="DependencyNeverSatisfied") if q.job in doomed else q for q in queue]
    monkeypatch.setattr(slurm, "queue", lambda: doom)
    assert sizes(slurm.plan(only_failed=True)) == {"it1-training": 1, "it1-evaluation": 1, "report": 1}


def test_saved_work_of_a_queued_job_is_not_cleaned(slurm: Slurm, capsys: Capture) -> None:
    slurm.submit(slurm.plan())
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


def test_what_is_set_up_here_is_no_job_and_is_not_cleaned(llama: Path, tmp_path: Path) -> None:
    words = tiny(llama, tmp_path, "iter=1", "launcher=slurm", "launcher.site.setup_here=true")
    sweep = swept(*words)
    wanted = missing_setup(sweep)
    assert wanted and {node.job for node in wanted} == {SETUP} == {t.job for t in sweep.tasks(2) if not t.needs}
    set_up(sweep)
    for again in (sweep, swept(*words)):
        assert missing_setup(again) == [] and SETUP not in {task.job for task in again.tasks(2)}
    clean(sweep.points[0].run, confirmed=True)
    assert all(sweep.store.has(node) for node in wanted)


def test_a_plan_knows_what_will_be_set_up_here(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = tiny(llama, tmp_path, "iter=1", "launcher=slurm")
    for here in (False, True):
        assert call("plan", *words, f"launcher.site.setup_here={here}") == 0
        assert ("start-setup" in capsys.readouterr().out) is not here
    assert not (tmp_path / "store").exists()
