"""What ends a worker ends the command: 2 for a mistake of the user, 3 for whatever else it died of."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
from functools import partial
from pathlib import Path

import pytest
from places import PYTHONPATH

from src.config import Fault, UserError
from src.faults import SAID
from src.main import guarded
from src.workers import Crew, Job, run_in_processes

pytestmark = pytest.mark.full
Capture = pytest.CaptureFixture[str]
CREW = Crew("rank", "hardware.ranking", 2, 1, "cpu")


@pytest.fixture(autouse=True)
def workers_find_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)


def fails(error: Exception, number: int, count: int) -> None:
    if number == 1:
        raise error


def is_killed(number: int, count: int) -> None:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("job", "code", "said"),
    [
        (
            partial(fails, OSError(errno.ENOSPC, "x", "/store/cells")),
            3,
            f"ended with exit code 3: /store/cells: {SAID[errno.ENOSPC]} (",
        ),
        (partial(fails, Fault("the server is gone")), 3, "ended with exit code 3: the server is gone ("),
        (partial(fails, UserError("data.parts: no")), 2, "ended with exit code 2: data.parts: no ("),
        (partial(fails, ValueError("x")), 3, "ended with exit code 1: ValueError: x ("),
        (is_killed, 3, "was killed by SIGKILL; was memory short?: it said nothing ("),
    ],
    ids=["a full disk", "a fault", "a mistake of the user", "a mistake of ours", "killed"],
)
def test_the_command_ends_as_its_worker_did(job: Job, code: int, said: str, tmp_path: Path, capsys: Capture) -> None:
    def act() -> int:
        run_in_processes(job, CREW, tmp_path, lambda: None)
        return 0

    assert guarded(act) == code
    told = capsys.readouterr().err
    assert told.startswith("error: rank: worker 1 (process ") and told.count("\n") == 1
    assert said in told and told.endswith("worker1.log); what was finished is kept, the same command goes on\n")


@pytest.mark.parametrize(("task", "kind"), [(2, UserError), (3, Fault), (137, Fault)])
def test_of_tasks_the_first_that_failed_decides(
    task: int, kind: type[UserError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun ends with the largest code, of those that it has killed too."""
    lines = f"srun: error: node1: task 1: Exited with exit code {task}\n1: ranker: no\n"
    (tmp_path / "srun").write_text(f"#!/bin/sh\nprintf '{lines}' >&2\nexit 143\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    with pytest.raises(UserError, match=r"Exited with exit code \d+; 1: ranker: no \(") as error:
        run_in_processes(is_killed, dataclasses.replace(CREW, nodes=2), tmp_path, lambda: None)
    assert type(error.value) is kind
