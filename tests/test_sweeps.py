"""sweeps/: each grid is what its head says, each W&B sweep makes commands that work, and its agents stop well.

Run: python -m pytest -q tests/test_sweeps.py
W&B's own agent is asked; only its server's answers are made up here.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
import yaml
from made_up_run import made_up
from omegaconf import OmegaConf
from tiny_run import ROOT, call, composed
from wandb_files import UNTIDY, point_of, recorded, wandb_home  # noqa: F401

from src import main as main_module
from src.launcher import Point
from src.sweep import Sweep
from src.tracking.metrics import METRICS, write_metrics

pytestmark = pytest.mark.slow

GRIDS = sorted((ROOT / "sweeps").glob("*.yaml"))
SEARCHES = sorted((ROOT / "sweeps" / "wandb").glob("*.yaml"))
GIVEN = {"method.eta": "7.0", "train.lr": "7e-07", "sampling.K": "7", "method": "ipo"}
"""On the command line, for a key that a grid sweeps."""
COST = re.compile(
    r"# Cost: (\d+) trainings, (\d+) sets of answers \((\d+) were none shared\), (\d+) rankings \((\d+)\); "
    r"([\d.]+) hours \(([\d.]+)\) on 2 CPU cores\."
)

each_grid = pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
each_search = pytest.mark.parametrize("file", SEARCHES, ids=lambda file: file.stem)


def points_of(*words: str) -> list[Point]:
    """Those that `python -m src.main *words` would carry out, composed and built."""
    found: list[Point] = []

    def keep(verb: str, confirmed: bool, points: list[Point]) -> int:
        found.extend(points)
        return 0

    with mock.patch.object(main_module, "carry_out", keep):
        assert call(*words) == 0
    return found


def swept(file: Path) -> dict[str, list[str]]:
    """Key -> values."""
    params = yaml.safe_load(file.read_text())["hydra"]["sweeper"]["params"]
    return {key: values.split(",") for key, values in params.items()}


def value(point: Point, key: str) -> str | float:
    """Of the run that would be carried out; the config that is written beside it says the same."""
    run, cfg = reduce(getattr, key.split("."), point.run), OmegaConf.select(point.cfg, key)
    found, told = (_plain(str(getattr(one, "name", one))) for one in (run, cfg))
    assert found == told
    return found


def _plain(text: str) -> str | float:
    """1e-5 and 1e-05 are one value."""
    try:
        return float(text)
    except ValueError:
        return text


def head(file: Path) -> list[str]:
    return list(itertools.takewhile(lambda line: line.startswith("#"), file.read_text().splitlines()))


def commands(file: Path) -> list[list[str]]:
    """Words behind `python -m src.main` of the commands that the head shows."""
    shown = [line.removeprefix("#   ") for line in head(file) if line.startswith("#   python -m src.main ")]
    return [shlex.split(line, comments=True)[3:] for line in shown]


# Grids -------------------------------------------------------------------------------------------------------------


def test_there_are_the_grids_that_the_plan_of_the_house_names() -> None:
    assert {"eta", "lr", "k", "eta_lr_k", "method"} <= {file.stem for file in GRIDS}


@each_grid
def test_a_grid_is_what_its_head_says(file: Path) -> None:
    package, first, *rest = head(file)
    count, keys = re.fullmatch(r"# (\d+) points: (.+)", first).groups()  # type: ignore[union-attr]
    grid = swept(file)
    assert package == "# @package _global_" and keys.split(", ") == list(grid)
    assert int(count) == math.prod(map(len, grid.values()))
    for name in ("Question", "Grid", "Command", "Cost"):
        assert sum(line.startswith(f"# {name}:") for line in rest) == 1, name
    assert commands(file)[0] == ["-m", f"+sweep={file.stem}"]
    assert all(words[:3] == ["plan", "-m", f"+sweep={file.stem}"] for words in commands(file)[1:])


@each_grid
def test_every_point_builds_and_costs_what_the_head_says(file: Path, tmp_path: Path) -> None:
    """Of an empty store, with the rates of the hardware's table."""
    grid, points = swept(file), points_of("-m", f"+sweep={file.stem}", f"store={tmp_path}")
    seen = [tuple(value(point, key) for key in grid) for point in points]
    assert seen == [tuple(map(_plain, values)) for values in itertools.product(*grid.values())]
    assert len({point.folder for point in points}) == len(points)
    rows = Sweep(points).rows()
    made = {job: _count(rows, job, lambda row: len(row.keys)) for job in ("training", "generation", "ranking")}
    apart = {job: _count(rows, job, lambda row: row.apart) for job in made}
    hours = [f"{sum(times) / 3600:.1f}" for times in ([r.shared_s for r in rows], [r.apart_s for r in rows])]
    (told,) = [COST.match(line) for line in head(file) if line.startswith("# Cost:")]
    assert told is not None
    assert [made["training"], made["generation"], apart["generation"], made["ranking"], apart["ranking"]] == [
        int(number) for number in told.groups()[:5]
    ]
    assert list(told.groups()[5:]) == hours and not any(row.unknown for row in rows)


def _count(rows: list[Any], job: str, of: Callable[[Any], int]) -> int:
    return sum(of(row) for row in rows if re.fullmatch(rf"it\d+ {job}", row.name))


@each_grid
def test_what_the_head_shows_for_published_systems_can_be_typed(file: Path) -> None:
    """With one value of each key that the words leave to the grid, for speed."""
    for words in commands(file)[1:]:
        given = {word.partition("=")[0] for word in words}
        rest = [f"{key}={values[0]}" for key, values in swept(file).items() if key not in given]
        values = [values for key, values in swept(file).items() if key in given]
        assert len(points_of(*words, *rest)) == math.prod(map(len, values)), words


@each_grid
def test_a_key_of_the_command_line_takes_the_place_of_the_grids(file: Path) -> None:
    """Of several keys all but the last are given."""
    *keys, last = swept(file)
    keys = keys or [last]
    points = points_of("-m", f"+sweep={file.stem}", *(f"{key}={GIVEN[key]}" for key in keys))
    left = swept(file)[last] if last not in keys else [GIVEN[last]]
    assert [value(point, last) for point in points] == [*map(_plain, left)]
    assert all(value(point, key) == _plain(GIVEN[key]) for point in points for key in keys)


@each_grid
def test_a_grid_sweeps_keys_that_there_are_and_its_default_is_in_it(file: Path) -> None:
    default = composed()
    for key, values in swept(file).items():
        found = OmegaConf.select(default, key)
        assert found is not None, key
        assert _plain(str(found.name if OmegaConf.is_config(found) else found)) in map(_plain, values)


# W&B's sweeps: what they are -------------------------------------------------------------------------------------


def trials(search: dict[str, Any]) -> list[dict[str, Any]]:
    """Values that W&B may choose: all of a grid; of distributions both ends and something long between."""
    choices = {
        name: kind["values"] if "values" in kind else [kind["min"], kind["max"], math.sqrt(kind["min"] * kind["max"])]
        for name, kind in search["parameters"].items()
    }
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


@pytest.fixture
def command_of(tmp_path: Path) -> Iterator[Callable[[dict[str, Any], dict[str, Any]], list[str]]]:
    """What W&B's agent starts for a sweep and the values of a trial; they come to it as JSON."""
    from wandb import wandb_agent

    def build(search: dict[str, Any], values: dict[str, Any]) -> list[str]:
        started: list[list[str]] = []
        agent = wandb_agent.Agent(api=None, queue=None, sweep_id="abc123", count=1)
        agent._sweep_command = list(search["command"])
        arguments = json.loads(json.dumps({name: {"value": value} for name, value in values.items()}))
        order = {"type": "run", "run_id": "trial1", "program": search["program"], "args": arguments}
        with mock.patch.object(
            wandb_agent, "AgentProcess", lambda command, **_: started.append(command) or mock.Mock()
        ):
            agent._command_run(order)
        return started[0]

    with mock.patch.dict(os.environ, {"WANDB_DIR": str(tmp_path), "WANDB_SWEEP_ID": "abc123"}):
        yield build


@each_search
def test_the_commands_of_wandbs_agent_are_planned_with_the_values_of_the_trial(
    file: Path, command_of: Callable[..., list[str]]
) -> None:
    search = yaml.safe_load(file.read_text())
    for values in trials(search):
        command = command_of(search, values)
        assert command[:4] == ["/usr/bin/env", "python", "-m", "src.main"]
        (point,) = points_of("plan", *command[4:])
        assert {name: value(point, name) for name in values} == {name: _plain(str(v)) for name, v in values.items()}
    assert call("plan", *command[4:]) == 0


@each_search
def test_a_trial_is_made_by_the_process_that_the_agent_started(
    file: Path, command_of: Callable[..., list[str]]
) -> None:
    """Submitted to a cluster it would end before there is a number, and W&B would take that for the end."""
    search = yaml.safe_load(file.read_text())
    (point,) = points_of("plan", *command_of(search, trials(search)[0])[4:])
    assert type(point.run.launcher).__name__ == "Local"
    assert type(point.run.tracking).__name__ == "WandB" and point.run.only is None
    assert search["project"] == point.cfg.tracking.project


@each_search
def test_the_agent_knows_every_word_in_braces(file: Path, command_of: Callable[..., list[str]]) -> None:
    """One that it does not know it leaves out without a word."""
    search = yaml.safe_load(file.read_text())
    for word in search["command"]:
        assert command_of({**search, "command": [word]}, trials(search)[0]), word


@each_search
def test_a_search_is_one_that_wandb_takes(file: Path) -> None:
    """Its server has the whole schema; what goes wrong in YAML is a number that becomes a word."""
    search = yaml.safe_load(file.read_text())
    assert search["method"] in ("grid", "random", "bayes") and search["program"] == "src/main.py"
    for name, kind in search["parameters"].items():
        if "values" in kind:
            assert set(kind) == {"values"} and len(set(kind["values"])) == len(kind["values"]) > 1, name
        else:
            assert search["method"] != "grid", name
            assert set(kind) == {"distribution", "min", "max"} and kind["distribution"] == "log_uniform_values", name
            assert all(isinstance(kind[end], float) for end in ("min", "max")), name
            assert 0 < kind["min"] < OmegaConf.select(composed(), name) < kind["max"], name


@each_search
def test_the_metric_is_one_that_every_iteration_writes(file: Path, tmp_path: Path) -> None:
    metric = yaml.safe_load(file.read_text())["metric"]
    story = made_up(tmp_path)
    write_metrics(story.nodes, story.store, story.folder)
    rows = [json.loads(line) for line in (story.folder / METRICS).read_text().splitlines()]
    assert [row["iteration"] for row in rows if isinstance(row.get(metric["name"]), float)] == [1, 2]
    assert metric["goal"] == "maximize"


@each_search
def test_the_array_that_the_head_shows_has_an_element_a_trial(file: Path) -> None:
    search = yaml.safe_load(file.read_text())
    count = len(trials(search)) if search["method"] == "grid" else search["run_cap"]
    assert f"#   sbatch --array=0-{count - 1}%4 slurm/agent.sbatch me/{search['project']}/abc123" in "\n".join(
        head(file)
    )
    assert f"# Cost: {count} trials of 3 trainings each." in "\n".join(head(file)) and "iter=3" in search["command"]


# W&B's sweeps: how a trial runs ----------------------------------------------------------------------------------


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
