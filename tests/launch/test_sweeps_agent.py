"""W&B's sweeps: a trial is one run whatever its stages, and the agent of a job stops well.

W&B's own agent is asked; only its server's answers are made up here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb
import yaml
from made_up_run import made_up
from sweep_points import SEARCHES
from tiny_run import ROOT
from wandb_files import UNTIDY, point_of, recorded, wandb_home  # noqa: F401

from src.tracking.metrics import METRICS, write_metrics

pytestmark = pytest.mark.full


@UNTIDY
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # W&B leaves the file of values open
def test_a_trial_is_one_run_of_the_sweep_whatever_its_stages(
    wandb_home: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """W&B sets aside our id and project for those of the sweep, and adds the values under their dotted names."""
    (wandb_home / "values.yaml").write_text("wandb_version: 1\nmethod.eta: {desc: null, value: 300.0}\n")
    told = {"SWEEP_ID": "abc123", "RUN_ID": "trial1", "PROJECT": "theirs", "MODE": "offline"}
    told["SWEEP_PARAM_PATH"] = str(wandb_home / "values.yaml")
    for key, value in told.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    wandb.teardown()  # its settings are read once a process
    story = made_up(wandb_home)
    point = point_of(story, "tracking=wandb")
    mirror = point.run.tracking.open(point)
    for name in ("it1/responses", "it1/policy", "it2/evaluation"):
        mirror.begin(next(node for node in story.nodes if node.name == name))
        mirror.update()
    mirror.close()
    (one,) = recorded(story.folder)
    write_metrics(story.nodes, story.store, story.folder)
    assert (one.id, one.run["sweep_id"], one.run["project"], one.family) == ("trial1", "abc123", "theirs", "trial")
    assert one.config["method.eta"] == 300.0
    assert one.steps == list(range(len((story.folder / METRICS).read_text().splitlines())))
    metric = yaml.safe_load(SEARCHES[0].read_text())["metric"]["name"]
    assert [row[metric] for row in one.history if metric in row] == [0.6, 0.6] and one.summary[metric] == 0.6
    assert (one.axes["train/*"], one.axes["evaluation/*"]) == ("train/total_step", "iteration")
    state = json.loads((story.folder / ".wandb" / "trial.json").read_text())
    assert (state["id"], state["project"]) == ("trial1", "theirs")


AGENT = """#!{python}
# `wandb agent`, its server's answers made up: one trial, then nothing more.
import sys
from unittest import mock
import wandb
from wandb import wandb_agent
from wandb.apis.public import sweeps
from wandb.cli import cli
wandb_agent.Agent.POLL_INTERVAL = 0.05
order = {{"type": "run", "run_id": "trial1", "program": "src/main.py", "args": {{"method.eta": {{"value": 300.0}}}}}}
answers = iter([[order]])
with (
    mock.patch.object(wandb, "Api"),
    mock.patch.object(wandb, "teardown"),
    mock.patch.object(wandb_agent.wandb_login, "_login"),
    mock.patch.object(sweeps, "_sweep_with_runs", lambda *a, **k: {{"config": open({search!r}).read()}}),
    mock.patch.object(sweeps, "_register_agent", lambda *a, **k: {{"id": "agent1"}}),
    mock.patch.object(sweeps, "_agent_heartbeat", lambda *a, **k: next(answers, [])),
):
    cli.cli(sys.argv[1:])
"""

TRIAL = """#!{python}
# `python -m src.main ...`: tells how it was started; at a signal it takes its time to save.
import json, os, signal, sys, time
from pathlib import Path
place = Path({place!r})
def save(number, frame):
    for other in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    time.sleep(1.5)
    (place / "saved").write_text(signal.Signals(number).name)
    os._exit(128 + number)
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, save)
keys = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_PROJECT", "WANDB_ENTITY")
(place / "told").write_text(json.dumps([sys.argv[1:], [os.environ[key] for key in keys]]))
(place / "started").touch()
if {ends!r} is None:
    time.sleep(60)
sys.exit({ends!r})
"""


class Job:
    """slurm/agent.sbatch as SLURM starts it, with `wandb`, `python`, `scontrol` and `sleep` of ours on PATH."""

    def __init__(self, place: Path, *, ends: int | None = None) -> None:
        """`ends`: exit code of the trial; None: it runs until it is stopped."""
        self.place, bin_ = place, place / "bin"
        bin_.mkdir()
        search = str(ROOT / "sweeps" / "wandb" / "eta_lr.yaml")
        for name, text in (
            ("wandb", AGENT.format(python=sys.executable, search=search)),
            ("python", TRIAL.format(python=sys.executable, place=str(place), ends=ends)),
            ("scontrol", f'#!/bin/bash\necho "$@" >> {shlex.quote(str(place / "scontrol"))}\n'),
            ("sleep", "#!/bin/bash\n"),
        ):
            (bin_ / name).write_text(text)
            (bin_ / name).chmod(0o755)
        environment = os.environ | {"PATH": f"{bin_}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
        environment |= {"WANDB_DIR": str(place), "WANDB_MODE": "offline"}
        self.log = (place / "log").open("w")
        self.process = subprocess.Popen(
            ["bash", "slurm/agent.sbatch", "me/theirs/abc123"],
            cwd=ROOT,
            env=environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def await_trial(self) -> None:
        limit = time.monotonic() + 60
        while not (self.place / "started").exists():
            assert time.monotonic() < limit and self.process.poll() is None, (self.place / "log").read_text()
            time.sleep(0.02)

    def read(self, name: str) -> str:
        return (self.place / name).read_text() if (self.place / name).exists() else ""

    def end(self) -> int:
        return self.process.wait(60)

    def all(self) -> list[psutil.Process]:
        here = psutil.Process(self.process.pid)
        return [here, *here.children(recursive=True)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def start_job(**how: Any) -> Job:
        jobs.append(Job(tmp_path, **how))
        return jobs[-1]

    yield start_job
    for job in jobs:
        if job.process.poll() is None:
            for process in job.all():
                process.kill()
            job.process.wait()
        job.log.close()


def test_an_element_carries_out_one_trial(start: Callable[..., Job]) -> None:
    job = start(ends=0)
    assert job.end() == 0, job.read("log")
    words, told = json.loads(job.read("told"))
    assert words == ["-m", "src.main", "launcher=local", "iter=3", "method.eta=300.0"]
    assert told == ["trial1", "abc123", "theirs", "me"]
    assert not job.read("scontrol")


def test_a_warning_reaches_the_trial_and_the_job_goes_back_into_the_queue(start: Callable[..., Job]) -> None:
    """SIGUSR1 comes to the batch script alone; the agent ends with 0 all the same."""
    job = start()
    job.await_trial()
    job.process.send_signal(signal.SIGUSR1)
    assert job.end() == 138, job.read("log")
    assert job.read("saved") == "SIGUSR1" and job.read("scontrol") == "requeue 77\n"


@pytest.mark.parametrize("alone", [False, True])
def test_the_end_comes_and_the_trial_saves(start: Callable[..., Job], alone: bool) -> None:
    """SIGTERM to all processes of the job, or to its script alone.

    Those that hand it on must not make the agent kill its trial.
    """
    job = start()
    job.await_trial()
    for process in job.all()[:1] if alone else reversed(job.all()):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)  # or signals of one kind become one
    assert job.end() == 143, job.read("log")
    assert job.read("saved") == "SIGTERM" and not job.read("scontrol")


@pytest.mark.parametrize("words", [[], [""], ["one", "two"]])
def test_without_a_sweep_nothing_starts(words: list[str]) -> None:
    done = subprocess.run(["bash", "slurm/agent.sbatch", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"agent\.sbatch: give one sweep: .*\n", done.stderr)
