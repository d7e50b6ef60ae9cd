"""W&B's sweeps: a trial is one run whatever its stages, and the agent of a job stops well.

W&B's own agent is asked; only its server's answers are made up here.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
import yaml
from made_up_run import made_up
from sweep_points import SEARCHES
from tiny_run import ROOT
from wandb_files import UNTIDY, point_of, recorded, wandb_home  # noqa: F401

from src.tracking.metrics import METRICS, write_metrics


@pytest.mark.full
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


def started(place: Path, ends: int | None) -> subprocess.Popen[bytes]:
    """slurm/agent.sbatch as SLURM starts it, with `wandb`, `python`, `scontrol` and `sleep` of ours on PATH.

    `ends`: exit code of the trial; None: it runs until it is stopped, and has begun.
    """
    (bin_ := place / "bin").mkdir(parents=True)
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
    command = ["bash", "slurm/agent.sbatch", "me/theirs/abc123"]
    job = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    limit = time.monotonic() + 200
    while ends is None and not (place / "started").exists():
        assert time.monotonic() < limit and job.poll() is None
        time.sleep(0.02)
    return job


@pytest.mark.faults
def test_an_element_carries_out_one_trial_which_saves_when_it_is_warned_or_ended(tmp_path: Path) -> None:
    """SIGUSR1 comes to the batch script alone. SIGTERM comes to it, or to all; who hands it on ends no trial early."""
    cases = ((os.kill, 0), (os.kill, signal.SIGUSR1), (os.kill, signal.SIGTERM), (os.killpg, signal.SIGTERM))
    for number, (send, sent) in enumerate(cases):
        place = tmp_path / str(number)
        job = started(place, ends=None if sent else 0)
        send(job.pid, sent)
        assert job.wait(200) == (128 + sent if sent else 0)
        words, told = json.loads((place / "told").read_text())
        assert words == ["-m", "src.main", "launcher=local", "iter=3", "method.eta=300.0"]
        assert told == ["trial1", "abc123", "theirs", "me"]
        assert not sent or (place / "saved").read_text() == signal.Signals(sent).name
        assert (place / "scontrol").exists() == (sent == signal.SIGUSR1), "it goes back into the queue"


def test_without_a_sweep_nothing_starts() -> None:
    for words in ([], [""], ["one", "two"]):
        command = ["bash", "slurm/agent.sbatch", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stdout == "", words
        assert done.stderr.startswith("agent.sbatch: give one sweep: ") and done.stderr.count("\n") == 1
