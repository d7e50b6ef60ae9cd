"""Jobs that are cancelled, or died while others go on"""

from __future__ import annotations

import dataclasses
import io
import itertools
from pathlib import Path

import pytest
from fake_slurm import ALL, Slurm, sizes
from rich.console import Console

from src.housekeeping import clean
from src.slurm import show
from src.slurm.client import Limits
from src.slurm.show import cancel, cells, print_status


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(tmp_path, monkeypatch)


def test_cancel_ends_the_job_for_the_rest_too(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    """It waits for all of them, and would submit the rest of what is not wanted any more. A job whose submission was
    cut off is found by its token.
    """
    slurm.submit(slurm.plan(limits=Limits(1001, 12)))
    assert len(slurm.alive) == 11
    slurm.ledger.file.write_text(
        "\n".join(
            line for line in slurm.ledger.file.read_text().splitlines() if '"job"' not in line or '"rest"' in line
        )
    )
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
    slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.submit(slurm.plan(limits=Limits(1001, 12)))
    (rest,) = [told for told in slurm.ledger.submissions.values() if told.name == "rest"]
    slurm.etas = range(1, 2)
    cancel(slurm.sweep())
    assert rest.element(0) in slurm.alive
    (told,) = [told for told in slurm.ledger.submissions.values() if told.name == "it1-training"]
    assert [told.element(index) in slurm.alive for index in range(3)] == [False, True, True]
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "1 jobs cancelled; 7 go on, for others wait for them"
    slurm.etas = range(1, 4)
    slurm.end()
    left = slurm.plan(again=False).arrays
    assert {element.task.point for array in left for element in array.elements.values()} == {1, 2}


def die(slurm: Slurm, name: str, index: int) -> None:
    (told,) = [told for told in slurm.ledger.submissions.values() if told.name == name]
    slurm.alive.remove(told.element(index))


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
    (told,) = [told for told in slurm.ledger.submissions.values() if told.name == "it1-generation"]
    die(slurm, "it1-generation", 0)
    slurm.ledger.mark(told, 0).touch()
    assert sizes(slurm.plan()) == {}
    assert cells(slurm.sweep(), slurm.ledger, slurm.queue())["it1 generation"][0].state == "queued"


def test_what_waits_for_a_job_that_has_just_failed_is_failed_too(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM cancels it in its next round."""
    slurm.submit(slurm.plan())
    doomed = {
        f"{told.job}_1" for told in slurm.ledger.submissions.values() if told.name in ("it1-evaluation", "report")
    }
    die(slurm, "it1-training", 1)
    queue = slurm.queue()
    doom = [dataclasses.replace(q, reason="DependencyNeverSatisfied") if q.job in doomed else q for q in queue]
    monkeypatch.setattr(slurm, "queue", lambda: doom)
    assert sizes(slurm.plan(only_failed=True)) == {"it1-training": 1, "it1-evaluation": 1, "report": 1}


def test_in_a_terminal_the_table_lives_until_nothing_runs(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm.submit(slurm.plan())
    screen, looks = io.StringIO(), itertools.count(1)

    def later(seconds: float) -> None:
        assert seconds == show.LOOK_S
        if next(looks) == 3:
            slurm.end()

    monkeypatch.setattr(show.time, "sleep", later)
    monkeypatch.setattr(show, "console", lambda: Console(file=screen, force_terminal=True, width=100))
    assert print_status(slurm.sweep()) == 1, "the runs have no report.md"
    assert next(looks) == 4
    shown = screen.getvalue()
    assert shown.index("queued") < shown.rindex("done")


def test_saved_work_of_a_queued_job_is_not_cleaned(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    slurm.submit(slurm.plan())
    run = slurm.sweep().points[0].run
    (node,) = [node for node in slurm.sweep().nodes[0] if node.name == "it1/policy"]
    work = slurm.place / "store" / node.stage.kind / f"{node.key}.partial-0123abcd" / "work"
    work.mkdir(parents=True)
    locks = slurm.place / "store/.locks"
    locks.mkdir(exist_ok=True)
    (locks / f"{node.stage.kind}-{node.key}.lock").touch()
    clean(run, confirmed=True)
    assert work.exists() and "kept: a job in the queue goes on from it" in capsys.readouterr().out
    slurm.alive = set()
    clean(run, confirmed=False)
    assert "saved work of a job; `retry` would go on from it" in capsys.readouterr().out
    clean(run, confirmed=True)
    assert not work.exists()
