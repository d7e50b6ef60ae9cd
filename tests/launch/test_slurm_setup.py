"""Models and prompts that are fetched where the command is given"""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import call, tiny, typed

from src.graph import SETUP
from src.housekeeping import clean
from src.launcher import Point
from src.slurm.setup_here import missing_setup, set_up
from src.sweep import Sweep


def sweep_of(words: list[str]) -> Sweep:
    return Sweep([Point(typed(*words), words, lambda: pytest.fail("composed"))])


def test_what_is_set_up_here_is_no_job_and_is_not_cleaned(llama: Path, tmp_path: Path) -> None:
    words = tiny(llama, tmp_path, "iter=1", "launcher=slurm", "launcher.site.setup_here=true")
    sweep = sweep_of(words)
    wanted = missing_setup(sweep)
    assert wanted and {node.job for node in wanted} == {SETUP} == {t.job for t in sweep.tasks(2) if not t.needs}
    set_up(sweep)
    for again in (sweep, sweep_of(words)):
        assert missing_setup(again) == [] and SETUP not in {task.job for task in again.tasks(2)}
    clean(sweep.points[0].run, confirmed=True)
    assert all(sweep.store.has(node) for node in wanted)


def test_a_plan_knows_what_will_be_set_up_here(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = tiny(llama, tmp_path, "iter=1", "launcher=slurm")
    for here in (False, True):
        assert call("plan", *words, f"launcher.site.setup_here={here}") == 0
        assert ("start-setup" in capsys.readouterr().out) is not here
    assert not (tmp_path / "store").exists()
