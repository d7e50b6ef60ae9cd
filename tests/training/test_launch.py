"""Starting training in several processes: the command, and what ends them. They train in test_distributed.py."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pytest import MonkeyPatch
from tiny_training import two

from src.kernel.artifact import WORK
from src.kernel.config import Fault, Stopped, UserError
from src.training import launch
from src.training.launch import OUTCOME, launch_command, train_in_processes
from src.training.stage import signals_as_file


def after(words: list[str], *flags: str) -> list[str]:
    return [words[words.index(flag) + 1] for flag in flags]


def test_one_node_is_one_launcher_on_a_free_port(tmp_path: Path) -> None:
    command = launch_command(two(2, count=8).devices, tmp_path / "job.pickle")
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert after(command, "--num_processes", "--num_machines", "--main_process_port") == ["8", "1", "0"]
    assert command[-3:] == ["--module", "src.training.launch", str(tmp_path / "job.pickle")]


def test_several_nodes_of_an_allocation_are_a_launcher_each_that_meet_at_the_first(
    monkeypatch: MonkeyPatch, tmp_path: Path
) -> None:
    """The shell line of a task is read by a shell, with a stand-in for `scontrol`."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$1 $2 $3" = "show hostnames a[1-4]" ] && printf "a1\\na2\\na3\\na4\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job, devices = tmp_path / "a job" / "job.pickle", two(2, count=32, nodes=4).devices
    job.parent.mkdir()
    allocation = {"JOB_NUM_NODES": "2", "JOB_NODELIST": "a[1-4]", "JOB_ID": "20123", "PROCID": "3"}
    for name, value in (allocation | {"CPUS_ON_NODE": "96"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(UserError, match=r"^hardware\.devices\.nodes: 4, started on 2 SLURM nodes"):
        launch_command(devices, job)
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "4")
    command = launch_command(devices, job)
    assert command[0] == "srun" and "--kill-on-bad-exit=1" in command and command[-3:-1] == ["bash", "-c"]
    assert after(command, "--nodes", "--ntasks", "--ntasks-per-node", "--cpus-per-task") == ["4", "4", "1", "96"]
    script = "set -- " + command[-1].removeprefix("trap '' USR1; exec ") + '; printf "%s\\n" "$@"'
    words = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert after(words, "--num_processes", "--num_machines", "--machine_rank") == ["32", "4", "3"]
    assert after(words, "--main_process_ip", "--main_process_port") == ["a1", "20123"]
    assert words[-1] == str(job)


KILLED = "echo 'E1123 torch: failed (exitcode: -9) local_rank: 1 (pid: 7)' >&2; "
LOST = """{"error": "train: the processes of this job lost each other", "fault": true}"""


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        (f"""echo '{{"error": "train: no", "fault": false}}' > {OUTCOME}; exit 1""", UserError, "^train: no$"),
        (f"""echo '{{"error": "train: no", "fault": true}}' > {OUTCOME}; exit 1""", Fault, "^train: no$"),
        (f"""echo '{{"stopped": 15}}' > {OUTCOME}""", Stopped, "SIGTERM"),
        ("echo starting >&2; echo the port is taken >&2; exit 7", Fault, r"exit code 7: the port is taken \(\S+log\)"),
        (KILLED + "exit 1", Fault, "process 1 was killed by SIGKILL; was memory short"),
        (f"{KILLED} echo '{LOST}' > {OUTCOME}; exit 1", Fault, "process 1 was killed by SIGKILL"),
        (f"echo '{LOST}' > {OUTCOME}; exit 1", Fault, "lost each other"),
    ],
)
def test_how_the_processes_end_is_how_this_one_does(
    script: str, kind: Any, message: str, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """A shell stands for the processes; what an earlier attempt has left is forgotten."""
    work, stage = tmp_path / WORK, two(2)
    work.mkdir()
    (work / OUTCOME).write_text('{"error": "old", "fault": false}')
    words = ["sh", "-c", f"cd {shlex.quote(str(work))}; {script}"]
    monkeypatch.setattr(launch, "launch_command", lambda devices, job: words)
    with pytest.raises(kind, match=message) as end:
        train_in_processes(stage.method, stage.recipe, stage.devices, stage.seed, tmp_path, tmp_path, tmp_path)
    assert type(end.value) is kind and "\n" not in str(end.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_training_as_a_file(number: int, tmp_path: Path) -> None:
    """Its processes are in a session of their own. The handler is called as the system would."""
    before = signal.getsignal(number)
    with signals_as_file(tmp_path / "stop"):
        handler: Any = signal.getsignal(number)
        handler(number, None)
    assert (tmp_path / "stop").read_text() == str(int(number))
    assert signal.getsignal(number) == before
