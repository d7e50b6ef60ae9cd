"""What counts as getting on, for a job that is started again and again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny_run import made_point, typed

from src.experiment.graph import nodes_of
from src.kernel.artifact import WORK
from src.kernel.config import UserError
from src.kernel.store import Store
from src.launch.slurm import allocation
from src.launch.slurm.allocation import count_start, progress


def test_an_answer_that_is_kept_is_progress_and_a_line_of_a_log_is_none(tmp_path: Path) -> None:
    store, node = Store(tmp_path), nodes_of(typed("iter=1"))[-1]
    work = store.path(node).with_name(f"{node.key}.partial-1") / WORK

    def write(name: str) -> str:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        with (work / name).open("a") as file:
            file.write("more\n")
        return progress(store, [node])

    for kept in ("held_out.jsonl", "hellaswag/requests_rank0.db"):
        assert len({progress(store, [node]), write(kept), write(kept)}) == 3
    assert progress(store, [node]) == write("hellaswag/log") == write("metrics.jsonl")


def test_starts_are_counted_anew_after_progress(tmp_path: Path) -> None:
    file = tmp_path / "starts.json"
    assert [count_start(file, now) for now in ("a", "a", "a", "b", "b")] == [1, 2, 3, 1, 2]


def test_a_job_that_does_not_get_on_waits_longer_each_time_and_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed, slept = list[bool](), list[float]()
    monkeypatch.setattr("src.launch.slurm.allocation.execute", lambda point, alone: executed.append(alone) or 1 / 0)
    monkeypatch.setattr(allocation.time, "sleep", slept.append)
    monkeypatch.setattr(allocation, "note_sweep", lambda points: None)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    point = made_point(typed("iter=1", f"store={tmp_path}"))
    job = allocation.Allocation(alone=True, attempts=3, wait_seconds=10, mark=None)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            job.launch([point])
    with pytest.raises(UserError, match="^launcher.attempts: job 77 was started 3 times without progress"):
        job.launch([point])
    assert executed == [True] * 3 and slept == [10, 20]


def test_a_job_computes_on_the_cores_it_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster without cgroups shows every job all cores of the machine."""
    taken = list[int]()
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(allocation, "note_sweep", lambda points: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    job = allocation.Allocation(alone=True, attempts=1, wait_seconds=0, mark=None)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert job.launch([]) == 0
    for told in ("3", "64"):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", told)
        job.launch([])
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    job.launch([])
    assert taken == [8, 3, 8]
