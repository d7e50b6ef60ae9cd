"""sweeps/: each grid is what its head says, and each search of W&B makes commands that work.

W&B's own agent is asked; only its server's answers are made up here.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from made_up_run import made_up
from omegaconf import DictConfig, OmegaConf
from tiny_run import ROOT, composed, points_of
from wandb import wandb_agent

from src.experiment.point import Point
from src.kernel.config import Fault, Stopped
from src.launch import local
from src.reporting.metrics_file import METRICS, write_metrics

SEARCHES = [yaml.safe_load(file.read_text()) for file in sorted((ROOT / "sweeps" / "wandb").glob("*.yml"))]


def value(cfg: DictConfig, key: str) -> str | float:
    """Return the value of a key as a grid has it: a number, or the name of a choice."""
    chosen = OmegaConf.select(cfg, key, throw_on_missing=True)
    return plain(chosen.get("name") or chosen.kind if isinstance(chosen, DictConfig) else chosen)


def plain(text: Any) -> str | float:
    """Return a number where there is one: 1e-5 and 1e-05 are one value."""
    try:
        return float(text)
    except ValueError:
        return text


def test_a_grid_sweeps_keys_that_there_are_and_its_default_is_in_it() -> None:
    default = composed()
    for file in sorted((ROOT / "sweeps").glob("*.yaml")):
        count, keys = re.match(r"# .*\n# (\d+) points: (.+)", file.read_text()).groups()  # type: ignore[union-attr]
        params = yaml.safe_load(file.read_text())["hydra"]["sweeper"]["params"]
        grid = {key: values.split(",") for key, values in params.items()}
        assert keys.split(", ") == list(grid) and int(count) == math.prod(map(len, grid.values())), file.name
        for key, values in grid.items():
            assert value(default, key) in map(plain, values), f"{file.name}: {key}"


# Searches of W&B ---------------------------------------------------------------------------------------------------


def command_of(search: dict[str, Any], values: dict[str, Any], place: Path) -> list[str]:
    """Return what W&B's agent starts for a sweep and the values of a trial, which come to it as JSON."""
    started: list[list[str]] = []
    arguments = json.loads(json.dumps({name: {"value": value} for name, value in values.items()}))
    order = {"type": "run", "run_id": "trial1", "program": search["program"], "args": arguments}
    with (
        mock.patch.dict(os.environ, {"WANDB_DIR": str(place), "WANDB_SWEEP_ID": "abc123"}),
        mock.patch.object(wandb_agent, "AgentProcess", lambda command, **_: started.append(command) or mock.Mock()),
    ):
        agent = wandb_agent.Agent(api=None, queue=None, sweep_id="abc123", count=1)
        agent._sweep_command = list(search["command"])
        agent._command_run(order)
    return started[0]


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search["name"])
def test_the_commands_of_wandbs_agent_have_the_values_of_the_trial(search: dict[str, Any], tmp_path: Path) -> None:
    """The process that the agent starts makes the trial: W&B takes its end for the trial's."""
    for end in (0, -1):
        kinds = search["parameters"].items()
        values = {name: (kind.get("values") or [kind["min"], kind["max"]])[end] for name, kind in kinds}
        command = command_of(search, values, tmp_path)
        assert command[:4] == ["/usr/bin/env", "python", "-m", "src.main"]
        (point,) = points_of(*command[4:])
        assert {name: value(point.cfg, name) for name in values} == {name: plain(one) for name, one in values.items()}
        around = [type(one).__name__ for one in (point.launcher, point.tracking)]
        assert around == ["Local", "WandB"] and search["project"] == point.cfg.tracking.project


def test_where_a_point_fails_it_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is the first failed point's. A signal ends all."""
    ends: dict[float, BaseException | None] = {1: None, 2: Fault("x: full"), 3: ValueError("odd"), 4: None}
    seen: list[float] = []

    def execute(point: Point) -> None:
        seen.append(eta := point.run.method.eta)
        if error := ends[eta]:
            raise error

    monkeypatch.setattr(local, "check", lambda _: None)
    monkeypatch.setattr(local, "execute", execute)
    points = points_of("-m", "method.eta=1,2,3,4", f"runs={tmp_path}", f"store={tmp_path}/store")
    assert points[0].launcher.launch(points) == 3 and seen == [1, 2, 3, 4]
    err = capsys.readouterr().err
    assert all(f"method.eta={eta}" in err for eta in (2, 3)) and "method.eta=4" not in err
    ends[2] = Stopped(signal.SIGINT)
    with pytest.raises(Stopped):
        points[0].launcher.launch(points)
    assert seen[4:] == [1, 2]


def test_a_search_is_one_that_wandb_takes(tmp_path: Path) -> None:
    """What goes wrong in YAML is a number that becomes a word. The metric is one that every iteration writes."""
    story, default = made_up(tmp_path), composed()
    write_metrics(story.nodes, story.store, story.folder)
    rows = [json.loads(line) for line in (story.folder / METRICS).read_text().splitlines()]
    for search in SEARCHES:
        assert search["method"] in ("grid", "random", "bayes") and search["program"] == "src/main.py"
        for name, kind in search["parameters"].items():
            if "values" not in kind:
                assert search["method"] != "grid" and kind["distribution"] == "log_uniform_values", name
                assert all(isinstance(kind[end], float) for end in ("min", "max")), name
                assert 0 < kind["min"] < OmegaConf.select(default, name) < kind["max"], name
        metric = search["metric"]["name"]
        assert [row["iteration"] for row in rows if isinstance(row.get(metric), float)] == [1, 2]


# Trials ------------------------------------------------------------------------------------------------------------


AGENT = """#!{python}
# `wandb agent` with its server's answers made up: one trial, then nothing more.
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

TRIAL = """#!/bin/bash
# `python -m src.main ...`: it writes how it was started, and at a signal it takes its time to save.
save() {{ trap '' USR1 TERM; kill $!; /bin/sleep 1.5; echo $1 > {place}/saved; exit $2; }}
trap 'save USR1 138' USR1
trap 'save TERM 143' TERM
echo "$@" $WANDB_RUN_ID $WANDB_SWEEP_ID $WANDB_PROJECT $WANDB_ENTITY > {place}/words
touch {place}/started
{then}
"""


@pytest.mark.faults
@pytest.mark.parametrize(
    ("send", "number"),
    [(os.kill, 0), (os.kill, signal.SIGUSR1), (os.kill, signal.SIGTERM), (os.killpg, signal.SIGTERM)],
)
def test_an_element_carries_out_one_trial_which_saves_when_it_is_warned_or_ended(
    send: Callable[[int, int], None], number: int, tmp_path: Path
) -> None:
    """SLURM starts slurm/agent.sbatch, with `wandb`, `python`, `scontrol` and `sleep` of ours on PATH.

    SIGUSR1 comes to the batch script alone. SIGTERM comes to it, or to all; who hands it on ends no trial early.
    """
    (tmp_path / "logs").mkdir()
    then = "/bin/sleep 600 & wait" if number else ""
    for name, text in {
        "wandb": AGENT.format(python=sys.executable, search=str(ROOT / "sweeps" / "wandb" / "eta_lr.yml")),
        "python": TRIAL.format(place=tmp_path, then=then),
        "scontrol": f'#!/bin/bash\necho "$@" >> {tmp_path}/requeued\n',
        "sleep": "#!/bin/bash\n",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    env |= {"WANDB_DIR": str(tmp_path / "logs"), "WANDB_MODE": "offline"}
    command = ["bash", "slurm/agent.sbatch", "me/theirs/abc123"]
    job = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True)
    while number and not (tmp_path / "started").exists():
        assert job.poll() is None
        time.sleep(0.02)
    send(job.pid, number)
    assert job.wait(200) == (128 + number if number else 0)
    words = "-m src.main launcher=local iter=3 method.eta=300.0 trial1 abc123 theirs me\n"
    assert (tmp_path / "words").read_text() == words
    assert not number or f"SIG{(tmp_path / 'saved').read_text()}" == f"{signal.Signals(number).name}\n"
    assert (tmp_path / "requeued").exists() == (number == signal.SIGUSR1), "it goes back into the queue"
