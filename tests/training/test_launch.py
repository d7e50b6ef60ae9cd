"""Starting training in several processes: commands, environment, what ends them.

The processes themselves are in test_distributed.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytest import MonkeyPatch
from tiny_training import two

from src.kernel.artifact import WORK
from src.kernel.config import Fault, Stopped, UserError
from src.kernel.faults import explain
from src.training import launch
from src.training.launch import STOP, launch_command, train_in_processes
from src.training.worker import LOG, OUTCOME


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


# The command


def test_one_node_is_one_launcher_on_a_free_port(tmp_path: Path) -> None:
    command = launch_command(two(2, count=8).devices, tmp_path / "job.pickle")
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    flags = ("--num_processes", "--num_machines", "--main_process_port")
    assert [after(command, flag) for flag in flags] == ["8", "1", "0"]
    assert command[-3:] == ["--module", "src.training.worker", str(tmp_path / "job.pickle")]


def allocate(monkeypatch: MonkeyPatch, folder: Path, nodes: str) -> None:
    """A SLURM allocation, and its `scontrol`; nothing is started, so `srun` need not do anything."""
    answer = '[ "$1 $2 $3" = "show hostnames a[1-4]" ] && printf "a1\\na2\\na3\\na4\\n"'
    for tool, line in {"scontrol": answer, "srun": "false"}.items():
        (folder / tool).write_text(f"#!/bin/sh\n{line}\n")
        (folder / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", nodes)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "a[1-4]")
    monkeypatch.setenv("SLURM_JOB_ID", "20123")


def test_several_nodes_are_a_launcher_each_that_meet_at_the_first(monkeypatch: MonkeyPatch, tmp_path: Path) -> None:
    allocate(monkeypatch, tmp_path, "4")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "96")
    job = tmp_path / "a job" / "job.pickle"
    job.parent.mkdir()
    command = launch_command(two(2, count=32, nodes=4).devices, job)
    assert command[0] == "srun" and "--kill-on-bad-exit=1" in command
    flags = ("--nodes", "--ntasks", "--ntasks-per-node", "--cpus-per-task")
    assert [after(command, flag) for flag in flags] == ["4", "4", "1", "96"]
    assert command[-3:-1] == ["bash", "-c"]
    script = "set -- " + command[-1].removeprefix("trap '' USR1; exec ") + '; printf "%s\\n" "$@"'
    env = os.environ | {"SLURM_PROCID": "3"}
    shown = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True)
    words = shown.stdout.splitlines()
    assert [after(words, flag) for flag in ("--num_processes", "--num_machines", "--machine_rank")] == ["32", "4", "3"]
    assert (after(words, "--main_process_ip"), after(words, "--main_process_port")) == ("a1", "20123")
    assert words[-1] == str(job)


def test_several_nodes_that_cannot_be_started_are_refused(monkeypatch: MonkeyPatch, tmp_path: Path) -> None:
    """Outside an allocation, in one of another size, in one that scontrol cannot read, and inside a container."""
    devices, said = two(2, count=32, nodes=4).devices, "^hardware.devices.nodes: "
    monkeypatch.delenv("SLURM_JOB_NUM_NODES", raising=False)
    with pytest.raises(UserError, match=said + "4, started on 0 SLURM nodes"):
        launch_command(devices, tmp_path)
    allocate(monkeypatch, tmp_path, "2")
    with pytest.raises(UserError, match=said + "4, started on 2 SLURM nodes"):
        launch_command(devices, tmp_path)
    allocate(monkeypatch, tmp_path, "4")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "b1")
    with pytest.raises(UserError, match=said + "scontrol .* b1"):
        launch_command(devices, tmp_path)
    (tmp_path / "srun").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=said + ".*srun"):
        launch_command(devices, tmp_path)


# What the processes leave behind


def run(out: Path, act: Callable[[Path], int]) -> None:
    """`act` stands for the processes; it is given the working folder, and returns their exit code."""
    with MonkeyPatch.context() as patch:
        patch.setattr(launch, "_run", lambda command, environment, work: act(work))
        stage = two(2)
        inputs = (out / "reference", out / "policy", out)
        train_in_processes(stage.method, stage.recipe, stage.devices, stage.seed, *inputs)


def leaving(outcome: dict[str, Any], code: int) -> Callable[[Path], int]:
    def act(work: Path) -> int:
        (work / OUTCOME).write_text(json.dumps(outcome))
        return code

    return act


def test_how_the_processes_ended_is_how_this_one_does(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^train: no$") as mistake:
        run(tmp_path, leaving({"error": "train: no"}, 2))
    assert type(mistake.value) is UserError
    with pytest.raises(Fault, match="^train: no$"):
        run(tmp_path, leaving({"error": "train: no", "fault": True}, 3))
    with pytest.raises(Stopped) as stopped:
        run(tmp_path, leaving({"stopped": 15}, 0))
    assert stopped.value.exit_code == 143


def test_an_outcome_that_cannot_be_read_is_a_failure_of_the_machine(tmp_path: Path) -> None:
    for said in ("", "[]", "{", "[" * 100_000, '{"stopped": 1000}', '{"error": 1}', "\xff"):
        (tmp_path / OUTCOME).write_bytes(said.encode("latin-1"))
        with pytest.raises(Fault, match=f"^train: {tmp_path / OUTCOME}: damaged"):
            launch._raise_outcome(tmp_path / OUTCOME)


KILLED = "E1123 torch/elastic: failed (exitcode: -9) local_rank: 1 (pid: 7) of binary: python"
GLOO = "RuntimeError: [x/gloo/transport/tcp/pair.cc:553] Connection closed by peer"
OF_THE_LAUNCHER = ["Traceback (most recent call last):", "  File launch.py", "ChildFailedError: ==="]


SHORT = "process 1 was killed by SIGKILL; was memory short?"
ENDS = [
    ([], "they said nothing"),
    (["starting", "the port is taken"], "the port is taken"),
    ([f"[rank1]: {OF_THE_LAUNCHER[0]}", "[rank1]:   File x", "[rank1]: OSError: y", *OF_THE_LAUNCHER], "OSError: y"),
    (["Traceback (most recent call last):"], "Traceback (most recent call last):"),
    (["Traceback", GLOO, "Traceback", "ValueError: x", *OF_THE_LAUNCHER], "ValueError: x"),
    (["Traceback", GLOO, *OF_THE_LAUNCHER], str(explain(RuntimeError(GLOO)))),
    ([*OF_THE_LAUNCHER, KILLED], SHORT),
    ([KILLED.replace("-9", "-11")], "process 1 was killed by SIGSEGV"),
]


def test_any_other_end_is_one_line_with_what_was_said(tmp_path: Path) -> None:
    for lines, told in ENDS:

        def act(work: Path, lines: list[str] = lines) -> int:
            (work / LOG).write_text("".join(f"{line}\n" for line in lines))
            return 7

        with pytest.raises(Fault) as fault:
            run(tmp_path, act)
        log = tmp_path / WORK / LOG
        assert str(fault.value).startswith(f"train: its processes ended with exit code 7: {told} ({log}); ")
        assert "\n" not in str(fault.value)


def test_outcomes_of_an_earlier_attempt_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / WORK).mkdir()
    (tmp_path / WORK / OUTCOME).write_text('{"error": "old"}')
    (tmp_path / WORK / STOP).write_text("15")
    run(tmp_path, lambda work: int((work / STOP).exists()))


def test_a_signal_reaches_the_processes_as_a_file(tmp_path: Path) -> None:
    """They are in a session of their own, where the signal itself does not reach them. The handler is called as the
    system would."""
    before = signal.getsignal(signal.SIGTERM)
    with launch._signals_as_file(tmp_path / STOP):
        handler: Any = signal.getsignal(signal.SIGTERM)
        handler(signal.SIGTERM, None)
    assert (tmp_path / STOP).read_text() == "15"
    assert signal.getsignal(signal.SIGTERM) == before
