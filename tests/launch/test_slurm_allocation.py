"""A job makes what it was submitted to make, on the cores it asked for, and is not started for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny_run import call, tiny, typed

from src.experiment.graph import nodes_of
from src.experiment.point import Point
from src.launch import local
from src.launch.slurm.ledger import keys_word

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """Points that are carried out, in a job of SLURM."""
    points = list[Point]()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr(local, "check", lambda point, alone: None)
    monkeypatch.setattr(local, "execute", lambda point, alone: points.append(point))
    monkeypatch.setattr(local, "note_sweep", lambda points: None)
    return points


def test_a_job_whose_config_was_edited_since_it_was_submitted_makes_nothing(
    llama: Path, tmp_path: Path, executed: list[Point], capsys: Capture
) -> None:
    """Another learning rate, and then another prompt in a data file, than when the job was submitted."""
    words, names = tiny(llama, tmp_path, "iter=1"), ["it1/responses", "it1/policy"]
    nodes = nodes_of(typed(*words))
    whole = [*words, "launcher=allocation", f"launcher.keys={keys_word(nodes)}"]
    part = [*words, "launcher=allocation", f"launcher.keys={keys_word(n for n in nodes if n.name in names)}"]
    part += ["launcher.alone=true", f"only=[{','.join(names)}]"]
    assert call(*part) == call(*whole) == 0 and len(executed) == 2, "as it was submitted"
    prompts = tmp_path / "part0.jsonl"
    for edited in ([*part, "train.lr=3e-5"], [*whole, "train.lr=3e-5"], part):
        if edited is part:
            prompts.write_text(prompts.read_text().replace("part 0", "part zero"))
        assert call(*edited) == 2 and len(executed) == 2
        assert capsys.readouterr().err.startswith("error: launcher.keys: ")


def test_a_job_that_slurm_starts_again_and_again_is_given_up(
    tmp_path: Path, executed: list[Point], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    words = [f"store={tmp_path / 'store'}", "launcher=allocation", "launcher.restarts=2"]
    for count, code in (("", 0), ("odd", 0), ("2", 0), ("3", 2)):
        monkeypatch.setenv("SLURM_RESTART_COUNT", count)
        assert call(*words) == code
    assert capsys.readouterr().err.startswith("error: launcher.restarts: ") and len(executed) == 3


def test_a_job_computes_on_the_cores_it_asked_for(executed: list[Point], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster without cgroups shows every job all cores of the machine."""
    taken = list[int]()
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for cores in ("3", "64", "odd"):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", cores)
        local.Allocation(alone=True, keys=None, restarts=0).launch([])
    assert taken == [3, 8, 8]
