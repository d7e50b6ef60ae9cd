"""What is submitted when the queue takes only some, when something failed, and when a run gets longer under way."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from fake_slurm import ALL, ROOMY, Slurm, finish, sizes
from tiny_run import composed, typed

from src.config import UserError
from src.launcher import Point
from src.slurm.client import Limits
from src.slurm.ledger import Ledger
from src.slurm.show import cells
from src.slurm.submit import Wish, plan
from src.sweep import Sweep


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(tmp_path, monkeypatch)


def test_what_the_queue_takes_is_submitted_and_a_job_for_the_rest(slurm: Slurm) -> None:
    planned = slurm.plan(limits=Limits(1001, 12))
    assert sizes(planned) == ALL and planned.room == 11
    assert slurm.submit(planned) == [*list(ALL)[:7], "rest"]
    (rest,) = [told for told in slurm.ledger.submissions.values() if told.name == "rest"]
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
    slurm = Slurm(tmp_path, monkeypatch, iterations=2)
    names = list(sizes(slurm.plan()))
    assert {"it2-generation-part1", "it2-generation-part2"} <= set(names)
    before = sum(sizes(slurm.plan())[name] for name in names[: names.index("it2-generation-part1")])
    submitted = slurm.submit(slurm.plan(limits=Limits(1001, before + 3 + 1)))
    assert "it2-generation-part1" not in submitted and submitted[-1] == "rest"
    slurm.end()
    left, wanted = sizes(slurm.plan(again=False)), ("it2-generation-part1", "it2-generation-part2", "report")
    assert [left.get(name) for name in wanted] == [3, 3, 3]


def test_chunks_of_one_generation_are_submitted_together_or_not_at_all(slurm: Slurm) -> None:
    planned = slurm.plan(parts=9, limits=Limits(4, None))
    chunks = [len(array.elements) for array in planned.arrays if array.name == "it1-generation"]
    assert chunks == [4, 4, 1]
    submitted = slurm.submit(dataclasses.replace(planned, room=7))
    assert "it1-generation" not in submitted and submitted[-1] == "rest"


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


def test_what_a_retry_could_not_submit_is_submitted_by_its_rest(slurm: Slurm) -> None:
    slurm.submit(slurm.plan())
    slurm.end("start-setup")
    planned = slurm.plan(only_failed=True, limits=Limits(1001, 12))
    assert sizes(planned) == ALL
    assert slurm.submit(planned)[-1] == "rest"
    slurm.end()
    assert sizes(slurm.plan(again=False)) == {name: ALL[name] for name in ("it1-evaluation", "report")}


def test_retry_of_what_failed_while_something_else_was_never_submitted(slurm: Slurm) -> None:
    """An evaluation of the base failed, and the trainings that its reader waits for too are still to be submitted."""
    planned = slurm.plan()
    names = list(sizes(planned))
    slurm.submit(dataclasses.replace(planned, arrays=planned.arrays[: names.index("it1-training")]))
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

    def asked(*more: str) -> Sweep:
        return Sweep([Point(typed(*words, *more), [], lambda: composed(*words, *more))])

    def state(sweep: Sweep) -> str:
        return cells(sweep, Ledger.of(sweep.store.root), [])["report"][0].state

    more = asked("benchmark=win_matrix")
    for node in more.nodes[0]:
        finish(more, node)
    (plain,) = asked().points
    plain.folder.mkdir(parents=True)
    files = {"config.yaml": plain.settings, "command.txt": "", "report.md": "without it", "summary.txt": ""}
    for name, content in files.items():
        (plain.folder / name).write_text(content)
    assert (state(asked()), state(more)) == ("done", "left")
    planned = [plan(one, Ledger.of(one.store.root), Wish(2, True), [], ROOMY) for one in (asked(), more)]
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
    rest = list(slurm.ledger.submissions.values())[-1]
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
